"""Settings: one frozen dataclass per service, filled from `UPLION_<PREFIX>_<FIELD>`; all problems reported at once."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

SettingsT = TypeVar("SettingsT")
_MISSING = dataclasses.MISSING


class SettingsError(Exception):
    """Some settings are missing or malformed; the message has a line for each and never shows a secret's value."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def setting(default: Any = _MISSING, *, doc: str, env: str | None = None, secret: bool = False) -> Any:
    """A field: its unit and consequence in `doc`; `env` names a second variable that many tools share (NATS_URL)."""
    metadata = {"doc": doc, "env": env, "secret": secret}
    if default is _MISSING:
        return dataclasses.field(metadata=metadata, repr=not secret)
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def load(cls: type[SettingsT], mapping: Mapping[str, str]) -> SettingsT:
    """Fills `cls` (its `PREFIX` names the service) from the mapping; raises SettingsError with every problem."""
    prefix = f"UPLION_{cls.PREFIX}_"  # type: ignore[attr-defined]
    hints = typing.get_type_hints(cls)
    problems: list[str] = []
    values: dict[str, Any] = {}
    fields = dataclasses.fields(cast(Any, cls))
    for field in fields:
        variable = prefix + field.name.upper()
        text = mapping.get(variable)
        shared = field.metadata.get("env")
        if text is None and shared is not None:
            text = mapping.get(shared)
        if text is None:
            if field.default is _MISSING and field.default_factory is _MISSING:
                problems.append(f"{variable} is missing: {field.metadata.get('doc', field.name)}")
            continue
        try:
            values[field.name] = _parse(hints[field.name], text)
        except ValueError as problem:
            shown = "(secret)" if field.metadata.get("secret") else repr(text)
            problems.append(f"{variable}={shown}: {problem}")
    known = {prefix + field.name.upper() for field in fields}
    problems += [
        f"{name} is not a setting" for name in sorted(mapping) if name.startswith(prefix) and name not in known
    ]
    if problems:
        raise SettingsError(problems)
    return cls(**values)


def dump(settings: object) -> dict[str, str]:
    """The environment that `load` reads back: how one process hands settings to another.

    Defaults are left out, so that they hide none of the variables a setting may also be read from.
    """
    prefix = f"UPLION_{settings.PREFIX}_"  # type: ignore[attr-defined]
    result: dict[str, str] = {}
    for field in dataclasses.fields(cast(Any, settings)):
        value = getattr(settings, field.name)
        if value is not None and value != field.default:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            result[prefix + field.name.upper()] = text
    return result


def _boolean(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("must be true or false")


def _strings(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: _boolean,
    Path: Path,
    tuple[str, ...]: _strings,
}


def _parse(hint: Any, text: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    return _PARSERS[hint](text)
