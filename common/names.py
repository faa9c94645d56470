"""Names that cross process boundaries: streams, subjects, buckets, headers, Valkey keys. Nothing else names them."""

from base64 import urlsafe_b64encode

# --- JetStream ------------------------------------------------------------------------------------------------------
STREAM_TASKS = "TASKS"
STREAM_USAGE = "USAGE"
STREAM_DEAD = "DEAD"
KV_MODELS = "models"  # model name -> AIModel manifest as JSON; its revision is the model's revision
KV_WORKERS = "workers"  # worker id -> dispatch.v1.WorkerState
KV_FLEET = "fleet"  # model name -> what fleet says of it, as JSON {"phase", "message"}
CONSUMER_BILLING = "billing"
LANE_DEFAULT = "default"
STREAM_DECISIONS = "DECISIONS"  # what authz refused, or would have: for `uplion explain`; loss is bearable
SUBJECT_INVALIDATE = "authz.invalidate"  # core NATS; payload b"key:<id>", b"account:<id>" or b"prices:"
SUBJECT_RELEASE = "authz.release"  # core NATS; b"<account> <reservation>": the request ended, its slot is free
SUBJECT_USED = "authz.used"  # core NATS; key ids separated by spaces: they were used in the last minute

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
HEADER_STATUS = "x-uplion-status"  # the router's answer to the edge: HTTP status when it is not 200
HEADER_LISTENER = "x-uplion-listener"  # the edge's word to authz: LISTENER_PUBLIC or LISTENER_ADMIN
HEADER_REQUEST_ID = "x-request-id"
HEADER_CLIENT = "x-envoy-external-address"  # the client's IP address: Envoy always writes it anew
HEADER_DEAD_REASON = "x-uplion-reason"  # on DEAD: why nobody could use the message
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
def quota_key(account: str) -> str:
    """Hash: `used`, `reserved`, and `used:<key>`, `reserved:<key>`; tokens."""
    return f"{{{account}}}:quota"


def reservations_key(account: str) -> str:
    """Sorted set: reservation id by expiry in unix milliseconds."""
    return f"{{{account}}}:reservations"


def reservation_amounts_key(account: str) -> str:
    """Hash: reservation id -> `<tokens>|<key>`."""
    return f"{{{account}}}:reservation:amounts"


def rate_key(account: str, key: str | None = None) -> str:
    """Sliding-window request counts of an account, or of one of its keys."""
    return f"{{{account}}}:rate:{key}" if key else f"{{{account}}}:rate"


def key_record_key(key_id: str) -> str:
    """What authz processes share of a key they looked up; its account is not known yet, so it is in no slot of one."""
    return f"authz:key:{key_id}"


def account_keys_key(account: str) -> str:
    """Set: the ids of the account's keys that `key_record_key` may hold."""
    return f"{{{account}}}:authz:keys"
