"""What authz decided against a request, for `uplion explain`: written by authz into DECISIONS, read by control."""

from datetime import datetime

import msgspec

# A week is kept, one decision of each request: its last.
KEPT_SECONDS = 7 * 86_400.0
KEPT_BYTES = 256 << 20


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """A refusal, or what a rule in shadow would have refused; JSON on the wire, times in RFC 3339."""

    request_id: str
    time: datetime
    reason: str  # common.errors.Reason
    account: str = ""
    project: str = ""
    key: str = ""
    model: str = ""
    rule: str = ""  # ledger.limits.Rule.name; empty: not a limit but the key, its model, network or scope
    level: str = ""
    measure: str = ""
    period: str = ""
    limit: int | None = None  # the rule's amount, in its own unit
    balance: int | None = None  # what it had left then
    clears_at: datetime | None = None  # None: never by itself, or not known
    shadow: bool = False  # the request went on
    retry_after_seconds: float | None = None  # as the answer said; None: it named no time


# Unix times are read too.
decode = msgspec.json.Decoder(Decision, strict=False).decode
encode = msgspec.json.Encoder().encode
