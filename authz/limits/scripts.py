"""Lua scripts in Valkey: called by their digest, sent whole only to a Valkey that does not have them."""

from hashlib import sha1
from importlib.resources import files
from typing import Any, Protocol

from storage.valkey import ScriptMissingError

_GIVING_BACK = files("storage").joinpath("giving_back.lua").read_text(encoding="utf-8")


class Commands(Protocol):
    """A connection to Valkey."""

    async def call(self, *command: str | bytes | int) -> Any: ...


class Script:
    """One of authz's scripts, with what it shares with billing's in front."""

    def __init__(self, valkey: Commands, name: str) -> None:
        self._valkey = valkey
        self._text = _GIVING_BACK + files("authz.limits").joinpath(name).read_text(encoding="utf-8")
        self._sha = sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def load(self) -> None:
        await self._valkey.call("SCRIPT", "LOAD", self._text)

    async def run(self, *arguments: str | bytes | int) -> Any:
        """From the number of keys on; raises ValkeyError, and may then have run all the same."""
        try:
            return await self._valkey.call("EVALSHA", self._sha, *arguments)
        except ScriptMissingError:
            return await self._valkey.call("EVAL", self._text, *arguments)
