"""The peppers of a local stack's keys, kept beside its other secrets, the one for new keys first."""

import secrets

from stack.errors import StackError
from stack.state import State

_SECRET_BYTES = 32


def ensure(state: State) -> tuple[str, ...]:
    """As services take them, `<id>:<secret>` each; made at the first start."""
    known = state.secrets()
    if "peppers" not in known:
        # Before peppers could be replaced there was one, without a number.
        first = known.pop("pepper", None) or secrets.token_urlsafe(_SECRET_BYTES)
        _write(state, (f"1:{first}",))
        return ensure(state)
    return tuple(known["peppers"].split(","))


def ids(state: State) -> list[str]:
    """The one for new keys first."""
    return [pepper.partition(":")[0] for pepper in ensure(state)]


def add(state: State) -> str:
    """A new one for new keys, from the next start on; returns its id."""
    pepper_id = str(max(int(each) for each in ids(state)) + 1)
    _write(state, (f"{pepper_id}:{secrets.token_urlsafe(_SECRET_BYTES)}", *ensure(state)))
    return pepper_id


def drop(state: State, pepper_id: str) -> None:
    """Forgets one: from the next start on, its keys are refused. The one for new keys stays."""
    known = ids(state)
    if pepper_id not in known:
        raise StackError(f"there is no pepper {pepper_id!r}, but: {', '.join(known)}")
    if pepper_id == known[0]:
        raise StackError(f"pepper {pepper_id!r} is the one for new keys; add another first")
    _write(state, tuple(each for each in ensure(state) if each.partition(":")[0] != pepper_id))


def _write(state: State, peppers: tuple[str, ...]) -> None:
    kept = {name: value for name, value in state.secrets().items() if name != "pepper"}
    state.write("secrets.json", kept | {"peppers": ",".join(peppers)})
