"""Names that cross process boundaries: streams, subjects, buckets, headers, Valkey keys. Nothing else names them."""

from base64 import urlsafe_b64encode

# --- JetStream ------------------------------------------------------------------------------------------------------
STREAM_TASKS = "TASKS"
STREAM_USAGE = "USAGE"
STREAM_DEAD = "DEAD"
KV_MODELS = "models"  # model name -> AIModel manifest as JSON; its revision is the model's revision
KV_WORKERS = "workers"  # worker id -> dispatch.v1.WorkerState
KV_FLEET = "fleet"  # model name -> its state as fleet reports it, JSON {"phase", "message"}
CONSUMER_BILLING = "billing"
LANE_DEFAULT = "default"
STREAM_DECISIONS = "DECISIONS"  # what authz refused, or would have: for `uplion explain`; loss is bearable
SUBJECT_INVALIDATE = "authz.invalidate"  # core NATS; payload b"key:<id>", b"account:<id>" or b"prices:"
SUBJECT_RELEASE = "authz.release"  # core NATS; lines of b"<account> <reservation>": it ended, its slot is free
SUBJECT_ARRIVED = "authz.arrived"  # core NATS, twice a second; ids of reservations, by spaces: a router has the calls
SUBJECT_STORE_EPOCH = "authz.since"  # core NATS, no payload: Valkey lost its data; each authz reserves again
SUBJECT_RECONCILE = "billing.reconcile"  # core NATS request; the answer is a billing.v1.Reconciliation, empty: failed
SUBJECT_LAST_USED = "authz.used"  # core NATS; key ids separated by spaces: they were used in the last minute

_MODEL_CHARACTERS = 256
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def token(name: str) -> str:
    """One NATS subject token (also a KV key and a consumer name part) for any model name, without collisions.

    Letters, digits and `-` stay; a name with anything else (HF ids hold `/` and `.`) becomes `_` + base64url.
    """
    if name and _PLAIN.issuperset(name):
        return name
    return "_" + urlsafe_b64encode(name.encode()).rstrip(b"=").decode()


def task_subject(model: str, lane: str = LANE_DEFAULT) -> str:
    return f"tasks.{token(model)}.{token(lane)}"


def task_consumer(model: str, lane: str = LANE_DEFAULT) -> str:
    """The durable pull consumer that the model's workers share."""
    return f"{token(model)}_{token(lane)}"


def usage_subject(model: str) -> str:
    """Any text a client may call a model; one too long to be a model's name would break the connection to NATS."""
    return f"usage.{token(model if 0 < len(model) <= _MODEL_CHARACTERS else 'none')}"


def decision_subject(request_id: str) -> str:
    return f"decisions.{token(request_id)}"


def dead_subject(stream: str) -> str:
    return f"dead.{stream}"


def attempt_id(request_id: str, attempt: int) -> str:
    """The `Nats-Msg-Id` of tickets and usage events."""
    return f"{request_id}.{attempt}"


# --- Headers (HTTP and gRPC metadata) -------------------------------------------------------------------------------
HEADER_PREFIX = "x-uplion-"
HEADER_ACCOUNT = "x-uplion-account"
HEADER_PROJECT = "x-uplion-project"
HEADER_KEY = "x-uplion-key"
HEADER_RESERVATION = "x-uplion-reservation"
HEADER_MODEL = "x-uplion-model"
HEADER_TIER = "x-uplion-tier"
HEADER_LIMITS = "x-uplion-limits"
HEADER_SCOPES = "x-uplion-scopes"
HEADER_PROOF = "x-uplion-proof"  # that authz made all of the above for this call (credentials.identity_proof)
HEADER_STATUS = "x-uplion-status"  # from the router to the edge: HTTP status when it is not 200
HEADER_PARAM = "x-uplion-param"  # from control to the edge, beside a gRPC error: the field it is about, percent-encoded
HEADER_LISTENER = "x-uplion-listener"  # from the edge to authz: LISTENER_PUBLIC or LISTENER_ADMIN
HEADER_REQUEST_ID = "x-request-id"
HEADER_CLIENT = "x-envoy-external-address"  # the client's IP address: Envoy always writes it anew
HEADER_DEAD_REASON = "x-uplion-reason"  # on DEAD: why the message could not be used
HEADER_SENT = "x-uplion-sent"  # on USAGE: unix ns, by the clock that wrote the event's end_time
HEADER_DEAD_SUBJECT = "x-uplion-subject"  # on DEAD: where it was published
HEADER_DEAD_SEQUENCE = "x-uplion-sequence"  # on DEAD: its number in the stream it came from
LISTENER_PUBLIC = "public"
LISTENER_ADMIN = "admin"

SCOPE_INFERENCE = "inference"
SCOPE_ADMIN = "admin"  # the platform's operator: every account, reading and writing
SCOPE_ADMIN_READ = "admin:read"  # its own account only
SCOPE_ADMIN_WRITE = "admin:write"  # its own account only
TIER_DEFAULT = "default"


# --- Valkey: everything of an account in one hash slot --------------------------------------------------------------
def reserved_key(account: str) -> str:
    """Hash: what is reserved for running requests, by `counter_field`, as far as a rule counts it; and `since`, the
    value of STORE_EPOCH_KEY that it is valid for.
    """
    return f"{{{account}}}:reserved"


def used_key(account: str, period: str) -> str:
    """Hash: the ledger's balances, by `counter_field`; -1 while one is being read there.

    `period` is "life", "2026-11" or "2026-11-21" (UTC).
    """
    return f"{{{account}}}:used:{period}"


def reservations_key(account: str) -> str:
    """Sorted set: reservation id by the unix milliseconds at which its request must have ended."""
    return f"{{{account}}}:reservations"


def reservation_amounts_key(account: str) -> str:
    """Hash: reservation id -> what to give back, in the form of storage/giving_back.lua."""
    return f"{{{account}}}:reservation:amounts"


def rate_key(account: str, unit: str, scope: str, model: str = "") -> str:
    """Hash: the sliding window of requests ("n") or tokens ("t") in buckets of a second; `scope` is ledger.limits'."""
    return f"{{{account}}}:rate:{counter_field(unit, scope, model)}"


def counter_field(unit: str, scope: str, model: str = "", currency: str = "") -> str:
    """A counter of the scope in an account's reserved and used hashes; `unit` is the limit kind's in ledger.limits."""
    return f"{unit}|{scope}|{model}|{currency}" if currency else f"{unit}|{scope}|{model}"


KEY_HEALTH = "uplion:health"  # written by a stack's watchdog: Valkey takes writes
STORE_EPOCH_KEY = "uplion:since"  # `<unix ms>-<ms>-<random>`: when the epoch began, and how long recovery takes


def key_record_key(key_id: str) -> str:
    """What authz processes share of a key they looked up; its account is not known yet, so it is in no slot of one."""
    return f"authz:key:{key_id}"


def account_keys_key(account: str) -> str:
    """Set: the ids of the account's keys that `key_record_key` may hold."""
    return f"{{{account}}}:authz:keys"
