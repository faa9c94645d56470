"""The children of one stack, built from its settings and not yet running."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stack.children.child import Child
from stack.children.processes import Process, Program, killed_on_failure, python, spawn
from stack.children.readiness import Readiness
from stack.children.workers import LocalWorkerFactory
from stack.embedded import health, probes, servers
from stack.embedded.proxy import Proxy
from stack.settings import StackSettings
from stack.state import State
from stack.wiring import ServicesProcess, Urls, Wiring

_SERVICES_TIMEOUT_SECONDS = 90.0


class Assembly:
    """Servers, services, proxy and the factory of workers; they may start in any order."""

    def __init__(
        self, settings: StackSettings, state: State, sockets: Path, listener: Readiness, on_change: Callable[[], None]
    ) -> None:
        self._state, self._listener, self._on_change = state, listener, on_change
        self.wiring = Wiring(settings, state, sockets)
        self.external: dict[str, str] = {}  # server name -> its URL, where one was given
        self.servers: list[Child] = []
        self.urls = Urls(
            postgres=self._server(servers.Postgres, settings.postgres_url),
            redis=self._server(servers.Valkey, settings.redis_url),
            nats=self._server(servers.Nats, settings.nats_url),
        )
        self.services = [self._services(process) for process in self.wiring.services(self.urls, listener.address)]
        edge = self.wiring.edge()
        self.proxy = Proxy(edge, state.folder / "envoy", state.log("envoy"))
        self.envoy = Child(
            "envoy",
            self._launch_envoy,
            on_change,
            address=self.wiring.public_address,
            probe=health.envoy(edge.envoy_admin_address),
        )
        self.workers = LocalWorkerFactory(state, self.wiring, listener, self.urls.nats, settings.grace_seconds)

    @property
    def fixed(self) -> list[Child]:
        """All children but the workers."""
        return [*self.servers, *self.services, self.envoy]

    @property
    def children(self) -> list[Child]:
        """All children there are now."""
        return [*self.fixed, *self.workers.children]

    async def check_external(self) -> None:
        """Refuses servers given by URL that do not answer."""
        names = {"valkey": "redis"}
        checks = (probes.check_external(names.get(name, name), url) for name, url in self.external.items())
        await asyncio.gather(*checks)

    async def nats_ready(self) -> None:
        """Returns when NATS serves."""
        for child in self.servers:
            if child.name == servers.Nats.name:
                await child.ready.wait()

    def _server(self, kind: type[servers.Postgres] | type[servers.Valkey] | type[servers.Nats], url: str | None) -> str:
        name = kind.name
        if url is not None:
            self.external[name] = url
            return url
        folder, log = self._state.folder / name, self._state.log(name)
        server = kind(folder, log, self.wiring.ports[name], self.wiring.secrets[name])
        probe = {
            "postgres": lambda: health.postgres(server.address, folder),
            "valkey": lambda: health.valkey(server.address, folder, self.wiring.secrets[name]),
            "nats": lambda: health.nats(server.address, folder, log, self.wiring.secrets[name]),
        }[name]()
        self.servers.append(
            Child(name, partial(servers.start, server), self._on_change, address=server.address, probe=probe)
        )
        return server.url

    def _services(self, process: ServicesProcess) -> Child:
        program = Program(
            name=process.name,
            argv=python("stack.services", *process.services),
            log=self._state.log(process.name),
            env=process.environment,
        )

        async def launch(on_spawn: Callable[[Process], None]) -> None:
            running = spawn(program)
            on_spawn(running)
            with killed_on_failure(running):
                await self._listener.wait(running, process.services, _SERVICES_TIMEOUT_SECONDS)

        return Child(
            process.name,
            launch,
            self._on_change,
            address=process.address,
            services=process.services,
            metrics_address=process.metrics_address,
        )

    async def _launch_envoy(self, on_spawn: Callable[[Process], None]) -> None:
        await self.proxy.render()
        await self.proxy.launch(on_spawn)
