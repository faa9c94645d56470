"""Addresses of all parts of a stack, and the environment of each of our own processes, from the stack's settings."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from authz.settings import AuthzSettings
from billing.settings import BillingSettings
from common import settings
from control.settings import ControlSettings
from edge.settings import EdgeSettings
from router.settings import RouterSettings
from stack import peppers, ports
from stack.children.processes import base_environment
from stack.embedded.probes import HOST
from stack.settings import StackSettings
from stack.state import State

SECRETS = ("postgres", "valkey", "nats", "ledger")
# A check shares its cores with engines and its loop with every other service here, and a ticket its disk with
# everything else: a machine that stands still for a second or two must not refuse. On a cluster 0.25 s and 0.9 s do.
_CHECK_SECONDS = 5.0
_PUBLISH_SECONDS = 5.0
_OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ISSUERS = "UPLION_AUTHZ_ISSUERS_FILE"
# The caller's own settings of our services reach them, but for those that the stack itself must make.
_SERVICE_SETTINGS = ("UPLION_AUTHZ_", "UPLION_ROUTER_", "UPLION_BILLING_", "UPLION_CONTROL_")


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the servers are, passwords included."""

    postgres: str
    redis: str
    nats: str


@dataclass(frozen=True, slots=True)
class ServicesProcess:
    """One process of composed services."""

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
        names = ["postgres", "valkey", "nats", "admin", *(f"metrics-{index}" for index in self._indexes())]
        if chosen.port == 0:
            names.append("public")
        self.ports = ports.choose(names, state.ports(), chosen.port)
        state.write("ports.json", self.ports)
        self.public_address = f"{HOST}:{chosen.port or self.ports['public']}"

    def _indexes(self) -> range:
        return range(self._settings.processes)

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
            authz_endpoints=tuple(self._socket(f"authz-{index}") for index in self._indexes()),
            router_endpoints=tuple(self._socket(f"router-{index}") for index in self._indexes()),
            control_endpoints=(self._socket("control"),),
            authz_timeout_seconds=_CHECK_SECONDS,
            otlp_endpoint=_host_and_port(os.environ.get(_OTLP, "")),
            tokens=bool(os.environ.get(_ISSUERS)),
        )

    def services(self, urls: Urls, notify_socket: str) -> list[ServicesProcess]:
        """The composed processes: each holds what requests pass through, the first one the rest as well."""
        return [self._services(index, urls, notify_socket) for index in self._indexes()]

    def _services(self, index: int, urls: Urls, notify_socket: str) -> ServicesProcess:
        grace_seconds = self._settings.grace_seconds
        authz = AuthzSettings(
            listen=self._socket(f"authz-{index}"),
            postgres_url=urls.postgres,
            redis_url=urls.redis,
            nats_url=urls.nats,
            peppers=self._peppers,
            proof_keys=self._proof_keys,
            issuers_file=Path(os.environ[_ISSUERS]).absolute() if os.environ.get(_ISSUERS) else None,
            limits_seconds=0.35 * _CHECK_SECONDS,
            lookup_seconds=0.5 * _CHECK_SECONDS,
        )
        router = RouterSettings(
            listen=self._socket(f"router-{index}"),
            nats_url=urls.nats,
            proof_keys=self._proof_keys,
            publish_seconds=_PUBLISH_SECONDS,
            drain_seconds=0.0,
            grace_seconds=grace_seconds,
            spool_dir=self._state.spool,
        )
        environment = {name: value for name, value in os.environ.items() if name.startswith(_SERVICE_SETTINGS)}
        environment |= settings.dump(authz) | settings.dump(router)
        if index == 0:
            billing = BillingSettings(
                postgres_url=urls.postgres,
                redis_url=urls.redis,
                nats_url=urls.nats,
                ledger_key=self.secrets["ledger"],
            )
            control = ControlSettings(
                listen=self._socket("control"),
                postgres_url=urls.postgres,
                nats_url=urls.nats,
                peppers=self._peppers,
                proof_keys=self._proof_keys,
                bootstrap_file=self._state.keys_file,
            )
            environment |= settings.dump(billing) | settings.dump(control)
        environment |= self.process_environment(notify_socket, self._address(f"metrics-{index}"))
        environment |= {"DATABASE_URL": urls.postgres, "REDIS_URL": urls.redis, "NATS_URL": urls.nats}
        return ServicesProcess(
            name="services" if index == 0 else f"services-{index + 1}",
            services=("authz", "router", "billing", "control") if index == 0 else ("authz", "router"),
            address=self._socket(f"router-{index}"),
            metrics_address=self._address(f"metrics-{index}"),
            environment=environment,
        )

    def process_environment(self, notify_socket: str, metrics_listen: str) -> dict[str, str]:
        """Environment variables that each of our own processes gets."""
        return {
            **base_environment(),
            **({_OTLP: os.environ[_OTLP]} if _OTLP in os.environ else {}),
            "NOTIFY_SOCKET": notify_socket,
            "UPLION_PROCESS_LOG_LEVEL": self._settings.log_level,
            "UPLION_PROCESS_METRICS_LISTEN": metrics_listen,
            "MALLOC_ARENA_MAX": "2",  # an arena per thread costs tens of MB that are not used
        }


def _host_and_port(endpoint: str) -> str | None:
    """OpenTelemetry's endpoints are URLs, Envoy's an address."""
    return urlsplit(endpoint).netloc if "://" in endpoint else endpoint or None
