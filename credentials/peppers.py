"""Peppers: the secrets outside the database that keys' digests are made with.

Each is written `<id>:<secret>`. The first one makes new digests, the others are still accepted: so a pepper is replaced
while keys under the old one go on working.
"""

from collections.abc import Iterable

from common.settings import SettingsError


def read(texts: Iterable[str], variable: str) -> dict[str, bytes]:
    """Secrets by id, in order; SettingsError names the variable and never a secret."""
    peppers: dict[str, bytes] = {}
    for text in texts:
        pepper_id, _, secret = text.partition(":")
        if not pepper_id or not secret:
            raise SettingsError([f"{variable}: each pepper is written <id>:<secret>"])
        if pepper_id in peppers:
            raise SettingsError([f"{variable}: two peppers have the id {pepper_id!r}"])
        peppers[pepper_id] = secret.encode()
    if not peppers:
        raise SettingsError([f"{variable} holds no pepper"])
    return peppers
