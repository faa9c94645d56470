"""The authenticated caller of a request, carried from authz to router and control in headers with a proof."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote

from common import names

_CACHED = 10_000

# All of them, in the order of `Identity.to_headers` and of the text that a proof covers.
IDENTITY_HEADERS = (
    names.HEADER_ACCOUNT,
    names.HEADER_PROJECT,
    names.HEADER_KEY,
    names.HEADER_RESERVATION,
    names.HEADER_MODEL,
    names.HEADER_TIER,
    names.HEADER_LIMITS,
    names.HEADER_SCOPES,
)


class UnprovenError(Exception):
    """A call whose identity headers authz did not make: a stranger's. The text is for the operator alone."""


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
    models: tuple[str, ...] = ()  # where models are listed: globs of those it may use; empty: every one
    slots_scarce: bool = False  # most of them are taken: the router ends no answer before its slot is free

    def may_use(self, model: str) -> bool:
        """Whether a list of models shows the caller this one."""
        return not self.models or models_pattern(self.models).fullmatch(model) is not None

    def to_headers(self) -> list[tuple[str, str]]:
        """The headers authz sets; every one is always written, so that a client's copy never survives."""
        limits = []
        if self.max_output_tokens is not None:
            limits.append(f"max_output_tokens={self.max_output_tokens}")
        if self.deadline_seconds is not None:
            limits.append(f"deadline_seconds={self.deadline_seconds:g}")
        if self.capped_by:
            limits.append(f"capped_by={quote(self.capped_by)}")  # it may hold the name of any model
        if self.holds_slot:
            limits.append("holds_slot=1")
        if self.slots_scarce:
            limits.append("slots_scarce=1")
        if self.models:
            limits.append(f"models={','.join(quote(glob, safe='') for glob in self.models)}")
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
    def from_headers(cls, headers: Mapping[str, str]) -> "Identity":
        """Reads it back from headers that authz made: credentials.identity_proof has verified them."""
        limits = dict(part.split("=", 1) for part in headers[names.HEADER_LIMITS].split(";") if "=" in part)
        models = limits.get("models")
        output, deadline = limits.get("max_output_tokens"), limits.get("deadline_seconds")
        return cls(
            account=headers[names.HEADER_ACCOUNT],
            key=headers[names.HEADER_KEY],
            reservation=headers[names.HEADER_RESERVATION],
            model=headers[names.HEADER_MODEL],
            tier=headers[names.HEADER_TIER],
            max_output_tokens=int(output) if output else None,
            deadline_seconds=float(deadline) if deadline else None,
            request_id=headers[names.HEADER_REQUEST_ID],
            project=headers[names.HEADER_PROJECT],
            capped_by=unquote(limits.get("capped_by", "")),
            holds_slot="holds_slot" in limits,
            slots_scarce="slots_scarce" in limits,
            scopes=tuple(headers[names.HEADER_SCOPES].split()),
            models=tuple(unquote(glob) for glob in models.split(",")) if models else (),
        )


@lru_cache(_CACHED)
def models_pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    """`*` matches any characters, `?` matches one; everything else matches itself."""
    patterns = (re.escape(glob).replace(r"\*", ".*").replace(r"\?", ".") for glob in globs)
    return re.compile("|".join(patterns), re.DOTALL)
