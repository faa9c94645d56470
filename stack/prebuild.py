"""`python -m stack.prebuild`: makes in advance what a first start would wait for.

That is the template of Envoy's configuration, and the bytecode of all that our processes import. `make setup` calls it.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from edge.settings import EdgeSettings
from stack.children.processes import Program, base_environment, spawn
from stack.embedded.proxy import Proxy
from stack.errors import StackError

_ANY, _ANY_SOCKET = "127.0.0.1:1", "unix:/any"  # addresses are filled into the template at each start
_IMPORTS = (
    "import authz.app, router.app, billing.app, control.app, stack.services",
    "import cli.chat, cli.client.connection, cli.local.lifecycle, cli.local.parts, cli.main",
    "import fleet.app, stack.running, rich.live",
    "import inference.app\nfrom inference.engines.transformers.fast_import import fast_import\n"
    "with fast_import(): import inference.engines.transformers.engine",
)
_IMPORT_TIMEOUT_SECONDS = 300.0


async def _render(folder: Path) -> None:
    settings = EdgeSettings(
        public_address=_ANY,
        admin_address=_ANY,
        envoy_admin_address=_ANY_SOCKET,
        authz_endpoints=(_ANY_SOCKET,),
        router_endpoints=(_ANY_SOCKET,),
        control_endpoints=(_ANY_SOCKET,),
    )
    await Proxy(settings, folder, folder / "edge.log").render()


async def _import(imports: str, folder: Path) -> None:
    argv = [sys.executable, "-P", "-c", imports]
    process = spawn(Program(name="import", argv=argv, log=folder / "import.log", env=base_environment()))
    try:
        async with asyncio.timeout(_IMPORT_TIMEOUT_SECONDS):
            code = await process.wait()
    except TimeoutError:
        raise StackError(f"`{imports}` took too long") from None
    finally:
        process.kill()
    if code != 0:
        raise StackError(f"`{imports}` failed: {process.why_it_ended()}")


async def _main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await asyncio.gather(_render(folder), *(_import(imports, folder) for imports in _IMPORTS))


def main() -> int:
    try:
        asyncio.run(_main())
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
