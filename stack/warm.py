"""`python -m stack.warm`: makes in advance what a first start would wait for, the template of Envoy's configuration."""

import asyncio
import sys
import tempfile
from pathlib import Path

from edge.settings import EdgeSettings
from stack.errors import StackError
from stack.proxy import Proxy

_ANY = "127.0.0.1:1"  # addresses are filled into the template at each start


async def _main() -> None:
    settings = EdgeSettings(
        public_address=_ANY,
        admin_address=_ANY,
        envoy_admin_address="unix:/any",
        authz_endpoints=(_ANY,),
        router_endpoints=(_ANY,),
        control_endpoints=(_ANY,),
    )
    with tempfile.TemporaryDirectory() as folder:
        await Proxy(settings, Path(folder), Path(folder) / "log").render()


def main() -> int:
    try:
        asyncio.run(_main())
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
