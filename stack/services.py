"""`python -m stack.services NAME...`: services that share one process and one event loop (ADR 1).

They are imported first and then wait for their servers, so that a start overlaps with the servers' own.
"""

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

from common import lifecycle
from common.lifecycle import ProcessSettings, Service
from common.settings import SettingsError, load
from stack.embedded import probes

_SERVERS_TIMEOUT_SECONDS = 60.0
_PROBE_EVERY_SECONDS = 0.02
_EXIT_SETTINGS = 2


def _authz(environment: Mapping[str, str]) -> Service:
    from authz.app import main
    from authz.settings import AuthzSettings

    return partial(main, load(AuthzSettings, environment))


def _router(environment: Mapping[str, str]) -> Service:
    from router.app import main
    from router.settings import RouterSettings

    return partial(main, load(RouterSettings, environment))


def _billing(environment: Mapping[str, str]) -> Service:
    from billing.app import main
    from billing.settings import BillingSettings

    return partial(main, load(BillingSettings, environment))


def _control(environment: Mapping[str, str]) -> Service:
    from control.app import main
    from control.settings import ControlSettings

    return partial(main, load(ControlSettings, environment))


# A process imports only what it runs.
_WIRING: dict[str, Callable[[Mapping[str, str]], Service]] = {
    "authz": _authz,
    "router": _router,
    "billing": _billing,
    "control": _control,
}


async def _until_servers_answer(environment: Mapping[str, str]) -> None:
    urls = [environment[name] for name in ("DATABASE_URL", "REDIS_URL", "NATS_URL") if name in environment]
    deadline = time.monotonic() + _SERVERS_TIMEOUT_SECONDS
    while urls and time.monotonic() < deadline:
        urls = [url for url in urls if not await probes.serves(url)]
        if urls:
            await asyncio.sleep(_PROBE_EVERY_SECONDS)


def main() -> int:
    names = sys.argv[1:]
    if not names or not set(names) <= _WIRING.keys():
        print(f"usage: python -m stack.services NAME...; names are {', '.join(_WIRING)}", file=sys.stderr)
        return _EXIT_SETTINGS
    gc.disable()  # while importing: what is made then stays; lifecycle.run turns it on again
    try:
        services = {name: _WIRING[name](os.environ) for name in names}
        process = load(ProcessSettings, os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return _EXIT_SETTINGS
    asyncio.run(_until_servers_answer(os.environ))
    return lifecycle.run(services, process)


if __name__ == "__main__":
    sys.exit(main())
