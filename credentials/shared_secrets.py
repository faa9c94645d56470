"""Secrets that several services share, with an id each, so that one is replaced while the one before is still accepted.

Each is written `<id>:<secret>`. The first one makes what is new (a key's digest, a proof of identity), and what any of
them made is accepted.
"""

from collections.abc import Iterable

from common.settings import SettingsError


def read(texts: Iterable[str], variable: str) -> dict[str, bytes]:
    """Secrets by id, in order; SettingsError names the variable and never a secret."""
    found: dict[str, bytes] = {}
    for text in texts:
        secret_id, _, secret = text.partition(":")
        if not secret_id or not secret:
            raise SettingsError([f"{variable}: each one is written <id>:<secret>"])
        if secret_id in found:
            raise SettingsError([f"{variable}: two have the id {secret_id!r}"])
        found[secret_id] = secret.encode()
    if not found:
        raise SettingsError([f"{variable} is empty; each one is written <id>:<secret>"])
    return found
