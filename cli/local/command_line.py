"""Our own command line, as every user of the machine sees it in /proc and `ps`: passwords do not stay there."""

import ctypes
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit


def hide_passwords(urls: Iterable[str | None]) -> None:
    """Overwrites the passwords of URLs that were given as arguments, in the memory that the kernel shows them from.

    They were visible for the moment until now; variables of the environment never are.
    """
    passwords = [urlsplit(url).password for url in urls if url is not None]
    with suppress(OSError, ValueError, IndexError):  # no /proc, or not as we know it: nothing is lost but the hiding
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = (
            int(fields[number]) for number in (45, 46)
        )  # arg_start and arg_end of proc(5), less the first two
        if 0 < start < end:
            shown = (ctypes.c_char * (end - start)).from_address(start)
            shown.raw = _without(shown.raw, passwords)


def _without(arguments: bytes, passwords: Iterable[str | None]) -> bytes:
    """The arguments with as many stars for each password."""
    for password in sorted((os.fsencode(each) for each in passwords if each), key=len, reverse=True):
        arguments = arguments.replace(password, b"*" * len(password))
    return arguments
