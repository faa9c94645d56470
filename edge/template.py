"""A template of the bootstrap on disk: filling in its addresses takes 0.1 s, rendering it takes 4 s of CPU.

The template is the typed configuration rendered with a placeholder for every address; filling it in touches socket
addresses only. Its file name is a digest of everything it is made from, so a stale one is never read. Stdlib only.
"""

import dataclasses
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from edge.settings import EdgeSettings

_ROOT = Path(__file__).resolve().parent.parent
_SOURCES = (
    "edge/*.py",
    "edge/lua/*.lua",
    "credentials/headers.py",
    "common/admin_api.py",
    "common/error_dialects.py",
    "common/errors.py",
    "common/names.py",
    "common/operations.py",
    "gen/uplion/*/v1/*_pb2.py",
)
_PLACEHOLDER_HOST = "192.0.2.0"  # a documentation address: numeric, and never a real endpoint
_PLACEHOLDER_LOG = "/access-log"
_PLACEHOLDER_SOCKET = "/socket-"
_UNIX = "unix:"
_ADDRESS_FIELDS = ("public_address", "admin_address", "envoy_admin_address", "otlp_endpoint")
_ENDPOINT_FIELDS = ("authz_endpoints", "router_endpoints", "control_endpoints")


def fill(settings: EdgeSettings, folder: Path, render: Callable[[EdgeSettings], str]) -> str:
    """The result of `render(settings)`, from a template in `folder` if possible; an unusable folder is no error."""
    if not _numeric(settings):
        return render(settings)
    blank, addresses, paths = _blank(settings)
    file = folder / f"edge-{_digest(blank)}.json"
    try:
        template = _kept(file)
    except OSError:
        template = render(blank)
        _keep(file, template)
    return json.dumps(_filled(json.loads(template), addresses, paths), indent=1)


def _numeric(settings: EdgeSettings) -> bool:
    """Whether a template can be used: host names need another kind of cluster."""
    texts = [getattr(settings, name) for name in _ADDRESS_FIELDS]
    texts += [each for name in _ENDPOINT_FIELDS for each in getattr(settings, name)]
    for text in texts:
        if text is None or text.startswith(_UNIX):
            continue
        try:
            ip_address(text.rpartition(":")[0].strip("[]"))
        except ValueError:
            return False
    return True


def _blank(settings: EdgeSettings) -> tuple[EdgeSettings, dict[int, tuple[str, int]], dict[str, str]]:
    """The settings with a placeholder for each address and path, and what a placeholder's port or path stands for."""
    addresses: dict[int, tuple[str, int]] = {}
    paths: dict[str, str] = {}

    def placeholder(text: str) -> str:
        if text.startswith(_UNIX):
            path = f"{_PLACEHOLDER_SOCKET}{len(paths)}"
            paths[path] = text.removeprefix(_UNIX)
            return f"{_UNIX}{path}"
        host, _, port = text.rpartition(":")
        number = len(addresses) + 1
        addresses[number] = (host.strip("[]"), int(port))
        return f"{_PLACEHOLDER_HOST}:{number}"

    changes: dict[str, Any] = {}
    for name in _ADDRESS_FIELDS:
        value = getattr(settings, name)
        changes[name] = None if value is None else placeholder(value)
    for name in _ENDPOINT_FIELDS:
        changes[name] = tuple(placeholder(each) for each in getattr(settings, name))
    if settings.access_log_path is not None:
        changes["access_log_path"] = _PLACEHOLDER_LOG
        paths[_PLACEHOLDER_LOG] = settings.access_log_path
    return dataclasses.replace(settings, **changes), addresses, paths


def _digest(settings: EdgeSettings) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(version("envoy-data-plane").encode())
    for pattern in _SOURCES:
        for path in sorted(_ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _filled(node: object, addresses: dict[int, tuple[str, int]], paths: dict[str, str]) -> object:
    if isinstance(node, list):
        return [_filled(each, addresses, paths) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("address") == _PLACEHOLDER_HOST:
        host, port = addresses[node["portValue"]]
        return {**node, "address": host, "portValue": port}
    if isinstance(path := node.get("path"), str) and path in paths:
        return {**node, "path": paths[path]}
    return {name: _filled(value, addresses, paths) for name, value in node.items()}


def _kept(file: Path) -> str:
    """The template; raises OSError where there is none, or one that others could have written."""
    with open(file, encoding="utf-8") as template:
        found = os.fstat(template.fileno())
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(errno.EPERM, "not ours alone", str(file))
        return template.read()


def _keep(file: Path, text: str) -> None:
    """Writes the file atomically: several instances may start at once."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(descriptor, "w") as out:
            out.write(text)
        os.replace(temporary, file)
    except OSError:
        return
