"""Runs a supervisor in this process, on its own event loop, until a signal."""

import asyncio
import signal
from collections.abc import Callable

from common import telemetry
from stack.settings import StackSettings
from stack.state import State
from stack.supervisor import Supervisor


def run(settings: StackSettings, on_change: Callable[[Supervisor], None] | None = None) -> None:
    """Returns after a first SIGTERM or SIGINT, when all has finished; a second one ends it now. Raises StackError."""

    async def main() -> None:
        stop, now = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (now if stop.is_set() else stop).set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, on_signal)
        await Supervisor(settings, on_change).run(stop, now)

    telemetry.configure_logging(settings.log_level, State(settings.state).log("supervisor"))
    asyncio.run(main())
