"""Addresses of all parts of a stack, and the environment of each of our own processes, from the stack's settings."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from authz.settings import AuthzSettings
from billing.settings import BillingSettings
from common import settings
from control.settings import ControlSettings
from edge.settings import EdgeSettings
from router.settings import RouterSettings
from stack import peppers, ports
from stack.children.processes import base_environment
from stack.children.watchdog import SILENCE_SECONDS
from stack.embedded.probes import HOST
from stack.settings import StackSettings
from stack.state import State

SECRETS = ("postgres", "valkey", "nats", "ledger")
# A check shares its cores with engines here, and a ticket its disk with everything else: a machine that stands still
# for a second or two must not refuse. On a cluster 0.25 s and 0.9 s do.
_CHECK_SECONDS = 5.0
_PUBLISH_SECONDS = 5.0
_OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ISSUERS = "UPLION_AUTHZ_ISSUERS_FILE"
_SERVERS = {"DATABASE_URL": "postgres_url", "REDIS_URL": "redis_url", "NATS_URL": "nats_url"}  # that are waited for

ServiceSettings: TypeAlias = AuthzSettings | RouterSettings | BillingSettings | ControlSettings


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the servers are, passwords included."""

    postgres: str
    redis: str
    nats: str


@dataclass(frozen=True, slots=True)
class ServicesProcess:
    """One process of one or more services."""

    name: str
    services: tuple[str, ...]
    address: str
    metrics_address: str
    environment: Mapping[str, str]


class Wiring:
    """All addresses of one stack; the ports of the run before are kept where they are free.

    Services listen on Unix sockets, out of other users' reach; what is TCP wants a password or a key, or is /metrics.
    """

    def __init__(self, chosen: StackSettings, state: State, sockets: Path) -> None:
        self._settings, self._state, self._sockets = chosen, state, sockets
        self._workers = itertools.count()
        self.secrets = state.ensure_secrets(SECRETS)
        self._peppers = peppers.ensure(state)
        self._proof_keys = (f"1:{state.renew_secret('proof')}",)  # no proof outlives a stack's end
        names = ["postgres", "valkey", "nats", "admin", "metrics-billing-control"]
        names += [f"metrics-{service}{number}" for service in ("authz", "router") for number in self._numbers()]
        if chosen.port == 0:
            names.append("public")
        self.ports = ports.choose(names, state.ports(), chosen.port)
        state.write("ports.json", self.ports)
        self.public_address = f"{HOST}:{chosen.port or self.ports['public']}"

    def _numbers(self) -> list[str]:
        """What is added to the name of each authz and of each router."""
        return ["", *(f"-{number}" for number in range(2, self._settings.processes + 1))]

    def _address(self, name: str) -> str:
        return f"{HOST}:{self.ports[name]}"

    def _socket(self, name: str) -> str:
        return f"unix:{self._sockets / name}"

    def worker_socket(self) -> str:
        """Where one more worker listens."""
        return self._socket(f"worker-{next(self._workers)}")

    @property
    def admin_address(self) -> str:
        """Of Envoy's listener for the admin API."""
        return self._address("admin")

    def edge(self) -> EdgeSettings:
        """What Envoy is made from."""
        return EdgeSettings(
            public_address=self.public_address,
            admin_address=self.admin_address,
            envoy_admin_address=self._socket("envoy"),
            authz_endpoints=tuple(self._socket(f"authz{number}") for number in self._numbers()),
            router_endpoints=tuple(self._socket(f"router{number}") for number in self._numbers()),
            control_endpoints=(self._socket("control"),),
            authz_timeout_seconds=_CHECK_SECONDS,
            otlp_endpoint=_host_and_port(os.environ.get(_OTLP, "")),
            tokens=bool(os.environ.get(_ISSUERS)),
        )

    def services(self, urls: Urls, notify_socket: str) -> list[ServicesProcess]:
        """The processes of services (ADR 1): authz waits for no stream, and no admin call or batch for either."""
        found = [self._process("billing-control", (self._billing(urls), self._control(urls)), notify_socket)]
        for number in self._numbers():
            found.append(self._process(f"authz{number}", (self._authz(f"authz{number}", urls),), notify_socket))
            found.append(self._process(f"router{number}", (self._router(f"router{number}", urls),), notify_socket))
        return found

    def _process(self, name: str, services: Sequence[ServiceSettings], notify_socket: str) -> ServicesProcess:
        """It gets the settings of its own services, those that the caller has set too, and no secret of another."""
        metrics_address = self._address(f"metrics-{name}")
        prefixes = tuple(f"UPLION_{each.PREFIX}_" for each in services)
        environment = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
        for each in services:
            environment |= settings.dump(each)
            environment |= {name: getattr(each, field) for name, field in _SERVERS.items() if hasattr(each, field)}
        return ServicesProcess(
            name=name,
            services=tuple(each.PREFIX.lower() for each in services),
            address=next(each.listen for each in services if not isinstance(each, BillingSettings)),
            metrics_address=metrics_address,
            environment=environment | self.process_environment(notify_socket, metrics_address),
        )

    def _authz(self, name: str, urls: Urls) -> AuthzSettings:
        return AuthzSettings(
            listen=self._socket(name),
            postgres_url=urls.postgres,
            redis_url=urls.redis,
            nats_url=urls.nats,
            peppers=self._peppers,
            proof_keys=self._proof_keys,
            issuers_file=Path(os.environ[_ISSUERS]).absolute() if os.environ.get(_ISSUERS) else None,
            limits_seconds=0.35 * _CHECK_SECONDS,
            lookup_seconds=0.5 * _CHECK_SECONDS,
        )

    def _router(self, name: str, urls: Urls) -> RouterSettings:
        return RouterSettings(
            listen=self._socket(name),
            nats_url=urls.nats,
            proof_keys=self._proof_keys,
            publish_seconds=_PUBLISH_SECONDS,
            drain_seconds=0.0,
            grace_seconds=self._settings.grace_seconds,
            spool_dir=self._state.spool,
        )

    def _billing(self, urls: Urls) -> BillingSettings:
        return BillingSettings(
            postgres_url=urls.postgres, redis_url=urls.redis, nats_url=urls.nats, ledger_key=self.secrets["ledger"]
        )

    def _control(self, urls: Urls) -> ControlSettings:
        return ControlSettings(
            listen=self._socket("control"),
            postgres_url=urls.postgres,
            nats_url=urls.nats,
            peppers=self._peppers,
            proof_keys=self._proof_keys,
            bootstrap_file=self._state.keys_file,
        )

    def process_environment(self, notify_socket: str, metrics_listen: str) -> dict[str, str]:
        """Environment variables that each of our own processes gets."""
        return {
            **base_environment(),
            **({_OTLP: os.environ[_OTLP]} if _OTLP in os.environ else {}),
            "NOTIFY_SOCKET": notify_socket,
            "WATCHDOG_USEC": str(int(SILENCE_SECONDS * 1e6)),
            "UPLION_PROCESS_LOG_LEVEL": self._settings.log_level,
            "UPLION_PROCESS_METRICS_LISTEN": metrics_listen,
            "MALLOC_ARENA_MAX": "2",  # an arena per thread costs tens of MB that are not used
        }


def _host_and_port(endpoint: str) -> str | None:
    """OpenTelemetry's endpoints are URLs, Envoy's an address."""
    return urlsplit(endpoint).netloc if "://" in endpoint else endpoint or None
