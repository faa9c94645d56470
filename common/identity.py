"""The authenticated caller of a request, carried from authz to the router in headers that no client can write."""

from collections.abc import Iterable
from dataclasses import dataclass

from common import names
from common.errors import Reason, UplionError


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller of one admitted request."""

    account: str
    key: str
    reservation: str  # empty: nothing was reserved, and nothing is owed a usage event
    model: str  # as the edge read it from the body; empty where the request names none
    tier: str
    max_output_tokens: int | None  # None: no limit but the model's
    deadline_seconds: float | None  # None: the router's default
    request_id: str
    project: str = ""  # empty: the key belongs to none
    capped_by: str = ""  # the budget's rule that max_output_tokens comes from; empty: not from a budget
    holds_slot: bool = False  # counted as one of so many at once: the router announces its end
    scopes: tuple[str, ...] = ()  # at the admin listener: what the caller may do there

    def to_headers(self) -> list[tuple[str, str]]:
        """The headers authz sets; every one is always written, so that a client's copy never survives."""
        limits = []
        if self.max_output_tokens is not None:
            limits.append(f"max_output_tokens={self.max_output_tokens}")
        if self.deadline_seconds is not None:
            limits.append(f"deadline_seconds={self.deadline_seconds:g}")
        if self.capped_by:
            limits.append(f"capped_by={self.capped_by}")
        if self.holds_slot:
            limits.append("holds_slot=1")
        return [
            (names.HEADER_ACCOUNT, self.account),
            (names.HEADER_PROJECT, self.project),
            (names.HEADER_KEY, self.key),
            (names.HEADER_RESERVATION, self.reservation),
            (names.HEADER_MODEL, self.model),
            (names.HEADER_TIER, self.tier),
            (names.HEADER_LIMITS, ";".join(limits)),
            (names.HEADER_SCOPES, " ".join(self.scopes)),
        ]

    @classmethod
    def from_metadata(cls, metadata: Iterable[tuple[str, str | bytes]]) -> "Identity":
        """Reads it back; raises PERMISSION_DENIED when the call did not come through authz."""
        found = {name: value for name, value in metadata if name.startswith("x-") and isinstance(value, str)}
        account, key = found.get(names.HEADER_ACCOUNT), found.get(names.HEADER_KEY)
        if not account or not key:
            raise UplionError(Reason.PERMISSION_DENIED, "This call did not come through the gateway.")
        limits = dict(part.split("=", 1) for part in found.get(names.HEADER_LIMITS, "").split(";") if "=" in part)
        output, deadline = limits.get("max_output_tokens"), limits.get("deadline_seconds")
        return cls(
            account=account,
            key=key,
            reservation=found.get(names.HEADER_RESERVATION, ""),
            model=found.get(names.HEADER_MODEL, ""),
            tier=found.get(names.HEADER_TIER, names.TIER_DEFAULT),
            max_output_tokens=int(output) if output else None,
            deadline_seconds=float(deadline) if deadline else None,
            request_id=found.get(names.HEADER_REQUEST_ID, ""),
            project=found.get(names.HEADER_PROJECT, ""),
            capped_by=limits.get("capped_by", ""),
            holds_slot="holds_slot" in limits,
            scopes=tuple(found.get(names.HEADER_SCOPES, "").split()),
        )
