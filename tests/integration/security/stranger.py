"""A program that becomes another user of the machine, tries what it can reach, and prints what it got.

Reads one JSON object {"uid", "ports", "sockets", "files", "pids", "methods", "metadata"} and, once it is that user,
speaks every protocol of a stack to every port, and opens every socket, file and process. Prints what it got as JSON.
"""

import encodings.idna  # noqa: F401 - as the folders of the interpreter may be closed to another user
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

_SECONDS = 5.0
_PATHS = ("/", "/v1/models", "/admin/v1/keys", "/config_dump", "/stats", "/varz", "/jsz", "/debug/pprof/", "/metrics")
_OF_PROCESS = ("environ", "mem", "maps", "fd", "cwd", "root", "exe")


def become(uid: int) -> None:
    """This user and no group but its own, for good."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def _said(port: int, words: bytes, *, then_close: bool = True) -> bytes:
    """What a TCP server answers; one that speaks HTTP closes by itself, and cuts a client that closes first."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), _SECONDS) as connection:
            connection.sendall(words)
            if then_close:
                connection.shutdown(socket.SHUT_WR)
            connection.settimeout(_SECONDS)
            while len(received) < 1 << 20 and (chunk := connection.recv(65536)):
                received += chunk
    except OSError:
        pass
    return received


def nats(port: int) -> str:
    """Connects without and with guessed passwords; let in when it pongs."""
    for user in ({}, {"user": "uplion", "pass": ""}, {"user": "uplion", "pass": "uplion"}, {"auth_token": "uplion"}):
        options = {"verbose": False, "pedantic": False, "lang": "x", "version": "1", "protocol": 1, **user}
        answer = _said(port, f"CONNECT {json.dumps(options)}\r\nSUB > 1\r\nSUB $SYS.> 2\r\nPING\r\n".encode())
        if b"PONG" in answer or b"\r\nMSG " in answer:
            return answer.decode(errors="replace")[:200]
    return ""


def valkey(port: int) -> str:
    """Asks for its users and settings; let in when anything but an error comes."""
    for command in ("PING", "ACL LIST", "CONFIG GET *", "INFO", "KEYS *", "HELLO 3", "CLIENT LIST", "AUTH uplion"):
        answer = _said(port, f"{command}\r\n".encode())
        if answer[:1] in (b"+", b"*", b"$", b"%", b"=", b":", b"~"):
            return f"{command}: {answer.decode(errors='replace')[:200]}"
    return ""


def postgres(port: int) -> str:
    """Starts sessions without a password; let in when it says AuthenticationOk."""
    for user in ("uplion", "postgres", "root", "nobody"):
        fields = f"user\0{user}\0database\0postgres\0\0".encode()
        answer = _said(port, struct.pack("!ii", 8 + len(fields), 196608) + fields)
        if answer[:1] == b"R" and answer[5:9] == b"\0\0\0\0":
            return f"{user}: {answer[:100]!r}"
    return ""


def http(port: int) -> dict[str, list[Any]]:
    """Status and beginning of each answer over HTTP."""
    found: dict[str, list[Any]] = {}
    for path in _PATHS:
        answer = _said(port, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode(), then_close=False)
        if answer.startswith(b"HTTP/1."):
            found[path] = [int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2].decode(errors="replace")]
    return found


def grpc_answers(target: str, methods: Iterable[str], metadata: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The status of each method, called with an empty message and these headers; OK when anything was sent."""
    found: dict[str, str] = {}
    with grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)]) as channel:
        for method in methods:
            send: Any = channel.stream_stream(method)
            call = send(iter([b""]), metadata=tuple(metadata), timeout=_SECONDS)
            try:
                for _ in call:
                    found[method] = "OK"
                    call.cancel()
                found.setdefault(method, "OK")
            except grpc.RpcError as problem:
                found.setdefault(method, problem.code().name)
            if found[method] in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                break  # it does not speak gRPC
    return found


def entered(path: str) -> str:
    """Connects to a Unix socket, or sends to it; empty when it was refused."""
    address = "\0" + path[1:] if path.startswith("@") else path
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as attempt:
            attempt.settimeout(_SECONDS)
            try:
                attempt.connect(address)
            except (PermissionError, FileNotFoundError):
                continue
            except OSError as problem:  # the wrong kind of socket, but we got there
                return str(problem)
            return f"connected by {kind.name}"
    return ""


def opened(path: str) -> str:
    """Reads, lists or changes a file or folder; empty when nothing was possible."""
    tries: tuple[Callable[[], object], ...] = (
        lambda: os.close(os.open(path, os.O_RDONLY)),
        lambda: os.close(os.open(path, os.O_WRONLY)),
        lambda: os.listdir(path),
        lambda: os.readlink(path),
        lambda: os.chmod(path, 0o777),
    )
    for each in tries:
        try:
            each()
        except OSError:
            continue
        return f"try {tries.index(each)} succeeded"
    return ""


def _port(port: int, wanted: dict[str, Any]) -> dict[str, Any]:
    found = {"nats": nats(port), "valkey": valkey(port), "postgres": postgres(port), "http": http(port)}
    return {**found, "grpc": grpc_answers(f"127.0.0.1:{port}", wanted["methods"], wanted["metadata"])}


def look(wanted: dict[str, Any]) -> dict[str, Any]:
    """Tries it all; the keys are ports and paths, values are empty where nothing was got."""
    with ThreadPoolExecutor(8) as pool:
        ports = dict(zip(wanted["ports"], pool.map(lambda port: _port(port, wanted), wanted["ports"]), strict=True))
    of_processes = [f"/proc/{pid}/{name}" for pid in wanted["pids"] for name in _OF_PROCESS]
    return {
        "uid": os.geteuid(),
        "ports": ports,
        "sockets": {path: entered(path) for path in wanted["sockets"]},
        "socket calls": {
            path: grpc_answers(f"unix:{path}", ["/grpc.health.v1.Health/Check"], ()) for path in wanted["sockets"]
        },
        "files": {path: got for path in [*wanted["files"], *of_processes] if (got := opened(path))},
        "command lines": {pid: Path(f"/proc/{pid}/cmdline").read_text(errors="replace") for pid in wanted["pids"]},
    }


def main() -> None:
    wanted = json.load(sys.stdin)
    grpc_answers("unix:/dev/null/nobody", ["/x/Y"], ())  # imports what a call needs, while its folder is open to us
    become(wanted["uid"])  # all threads: so says nptl(7)
    print(json.dumps(look(wanted)))


if __name__ == "__main__":
    main()
