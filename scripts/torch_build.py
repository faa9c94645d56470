"""Which build of torch `make setup` installs: one line for people on stderr, pip's arguments on stdout.

TORCH=cpu or TORCH=cuda decides; else a machine without an NVIDIA driver takes the CPU build, where PyTorch's own index
answers. Both builds have one version, and the CPU one a local label that sorts above it ("2.13.0+cpu"), so the index is
an extra one: all else comes from where this machine's pip is set up to take it.
"""

import os
import shutil
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_PROBE_SECONDS = 3.0
_DRIVER = ("proc/driver/nvidia/version", "dev/nvidia0", "dev/nvidiactl", "dev/dxg")  # the last one is WSL's
_CPU = "the CPU build (about 200 MB)"
_DEFAULT = "the default build of pip's index (on Linux with CUDA, about 3 GB, unless pip is set up otherwise)"


def choose(wanted: str, driver: Callable[[], bool], reachable: Callable[[], bool], platform: str) -> tuple[str, str]:
    """What to pass to pip besides the requirement, and the line. Raises ValueError for a wish that cannot be met."""
    extra = f"--extra-index-url {CPU_INDEX}"
    if wanted not in ("", "cpu", "cuda"):
        raise ValueError(f"TORCH={wanted} is neither cpu nor cuda")
    if wanted == "cuda":
        return "", f"{_DEFAULT}, as TORCH=cuda says"
    if wanted == "cpu":
        if platform == "linux" and not reachable():
            raise ValueError(f"{CPU_INDEX} does not answer; TORCH=cpu needs it, without TORCH pip's own index is used")
        return extra if platform == "linux" else "", f"{_CPU}, as TORCH=cpu says"
    if platform != "linux":
        return "", "the build of pip's index, which has no CUDA here"
    if driver():
        return "", f"{_DEFAULT}, for the NVIDIA driver of this machine; TORCH=cpu takes the other"
    if reachable():
        return extra, f"{_CPU}, since there is no NVIDIA driver; TORCH=cuda takes the other"
    return "", f"{_DEFAULT}: there is no NVIDIA driver, but PyTorch's own index, which has CPU builds, does not answer"


def has_driver(root: Path = Path("/")) -> bool:
    """Whether this machine has an NVIDIA driver."""
    return any((root / name).exists() for name in _DRIVER) or shutil.which("nvidia-smi") is not None


def answers(url: str = f"{CPU_INDEX}/torch/", seconds: float = _PROBE_SECONDS) -> bool:
    """Whether an index answers within a few seconds."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds) as response:  # noqa: S310
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def main() -> int:
    try:
        arguments, line = choose(os.environ.get("TORCH", ""), has_driver, answers, sys.platform)
    except ValueError as problem:
        print(f"setup: {problem}", file=sys.stderr)
        return 1
    print(f"setup: {sys.argv[1]}: {line}", file=sys.stderr)
    print(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
