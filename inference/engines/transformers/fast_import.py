"""Imports transformers without what a CPU worker never uses: torch's compiler, distributed tensors, the list of models.

transformers 5.23 marks functions for torch._dynamo and names DTensor in type tests; importing the two was 5 s of 12 s
until a model is loaded (on two busy cores) and 38 MB of memory. Listing all models there are reads 450 files, another
half second. Stand-ins take their places in `sys.modules` while transformers is imported, and are removed afterwards.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_COMPILER = "torch._dynamo"
_MODELS = "transformers.models"
_VMAP = "torch._dynamo._trace_wrapped_higher_order_op"


class _Unmarked(ModuleType):
    """Stands in for the compiler: its decorators return functions unchanged."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # what makes a module a package

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _plain


def _plain(function: Callable[..., object] | None = None, *_: object, **__: object) -> Callable[..., object]:
    return _plain if function is None else function


def _real_vmap_context(*arguments: object) -> object:
    """The real class of the compiler's package, for the rare mask that has to be built."""
    return importlib.import_module(_VMAP).TransformGetItemToIndex(*arguments)


@contextmanager
def fast_import() -> Iterator[None]:
    """Imports of transformers inside the block are such imports, unless there is an accelerator."""
    import torch

    if _COMPILER in sys.modules or torch.cuda.is_available():
        yield
        return
    from transformers import utils
    from transformers.utils import import_utils

    compiler, vmap = _Unmarked(_COMPILER), ModuleType(_VMAP)
    vmap.TransformGetItemToIndex = _real_vmap_context  # type: ignore[attr-defined]
    disable = torch.compiler.disable
    distributed = import_utils.is_torch_distributed_available
    held = {_COMPILER: compiler, _VMAP: vmap}
    if _MODELS not in sys.modules:
        held[_MODELS] = models = ModuleType(_MODELS)
        models.__path__ = [str(Path(import_utils.__file__).parents[1] / "models")]
    sys.modules.update(held)
    torch.compiler.disable = _plain  # type: ignore[assignment]  # a stand-in
    import_utils.is_torch_distributed_available = utils.is_torch_distributed_available = lambda: False
    try:
        yield
    finally:
        import_utils.is_torch_distributed_available = utils.is_torch_distributed_available = distributed
        torch.compiler.disable = disable
        for name, module in held.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
