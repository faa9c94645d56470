"""`uplion up` and `uplion down`."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time

from cli.local.command_line import hide_passwords
from cli.local.progress import Progress, progress
from cli.output import CommandError, JsonObject, print_json
from stack import disk
from stack.children.processes import python
from stack.errors import StackError
from stack.settings import StackSettings, default_state
from stack.state import State

_POLL_SECONDS = 0.02
_DOWN_MARGIN_SECONDS = 40.0  # over the grace that running requests have
_CURL_QUESTION = "Hello! What is 2 + 3?"


def up(settings: StackSettings, *, detach: bool, as_json: bool) -> None:
    """Starts a stack; in the foreground this returns when it was stopped."""
    from stack.supervisor import read_manifests

    hide_passwords((settings.postgres_url, settings.redis_url, settings.nats_url))
    read_manifests(settings)  # before anything starts, so that what is wrong is reported at once
    disk.check(settings)
    shown = progress(silent=as_json)
    try:
        if detach:
            run = _start_detached(settings, shown)
            shown.close()
            _announce(settings, run, as_json=as_json, detached=True)
        else:
            _run_here(settings, shown, as_json=as_json)
    finally:
        shown.close()


def _run_here(settings: StackSettings, shown: Progress, *, as_json: bool) -> None:
    from stack.running import run
    from stack.supervisor import Supervisor

    announced = False

    def on_change(supervisor: Supervisor) -> None:
        nonlocal announced
        if supervisor.status == "ready" and not announced:
            announced = True
            shown.close()
            _announce(settings, supervisor.report(), as_json=as_json, detached=False)
        elif supervisor.status == "starting":
            shown.show(supervisor.report())
        elif supervisor.status == "stopping" and announced and not as_json:
            _say_once("stopping: what is running may finish; press Ctrl-C again to end it now")

    run(settings, on_change)


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        print(text, file=sys.stderr, flush=True)


def _start_detached(settings: StackSettings, shown: Progress) -> JsonObject:
    from stack.__main__ import to_json

    state = State(settings.state)
    state.create()
    log = state.log("supervisor")
    with open(log, "ab", buffering=0) as output:
        start = output.tell()
        child = subprocess.Popen(  # noqa: S603 - ourselves
            python("stack"),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin as settings_file:  # it has ended: its log says why
            settings_file.write(to_json(settings).encode())
    try:
        while True:
            run = state.read_run()
            if run.get("pid") == child.pid:
                if run["status"] == "starting":
                    shown.show(run)
                if run["status"] == "ready":
                    return run
            if child.poll() is not None:
                words = log.read_bytes()[start:].decode(errors="replace").strip()
                raise StackError(words.splitlines()[-1] if words else f"the supervisor ended; see {log}")
            time.sleep(_POLL_SECONDS)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        child.wait()
        raise


def summary(state: State, run: JsonObject) -> JsonObject:
    """What `uplion up --json` prints."""
    pids = {"supervisor": run["pid"]}
    for part in run["parts"]:
        # Services that share a process have one pid; a second process of the same services goes by its own name.
        for name in [name for name in part["services"] if name not in pids] or [part["name"]]:
            pids[name] = part["pid"]
    copied = ("base_url", "grpc_address", "admin_url", "admin_address", "state_dir")
    servers = ("postgres_url", "nats_url", "redis_url")
    return {
        **{name: run[name] for name in copied},
        "api_key": state.first_key("api_key"),
        "admin_key": state.first_key("admin_key"),
        "pids": pids,
        **{name: run[name] for name in servers},
    }


def _announce(settings: StackSettings, run: JsonObject, *, as_json: bool, detached: bool) -> None:
    state = State(settings.state)
    facts = summary(state, run)
    if as_json:
        print_json(facts)
        return
    flag = "" if state.folder == default_state().absolute() else f" --state {shlex.quote(str(state.folder))}"
    stop = f"uplion down{flag}" if detached else f"Ctrl-C, or: uplion down{flag}"
    seconds = time.time() - run["started_at"]
    body = {
        "model": next(iter(run["models"]), "MODEL"),
        "stream": True,
        "messages": [{"role": "user", "content": _CURL_QUESTION}],
    }
    lines = [
        f"Uplion is ready after {seconds:.1f} s.",
        "",
        f"  base URL      {facts['base_url']}",
        f"  API key       {facts['api_key']}",
        f"  gRPC address  {facts['grpc_address']}",
        f"  admin API     {facts['admin_url']}",
        f"  logs          {state.logs}    uplion logs{flag}",
        f"  stop          {stop}",
        "",
        "A first request:",
        "",
        f"  curl -N {facts['base_url']}/chat/completions \\",
        f"    -H 'authorization: Bearer {facts['api_key']}' \\",
        "    -H 'content-type: application/json' \\",
        f"    -d '{json.dumps(body)}'",
        "",
    ]
    print("\n".join(lines), flush=True)


def down(state: State) -> bool:
    """Stops a stack and waits until it has; False when none ran."""
    pid = state.holder()
    if not pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_MARGIN_SECONDS + StackSettings(state.folder).grace_seconds
    while state.holder() == pid:
        if time.monotonic() > deadline:
            raise CommandError(f"the supervisor (pid {pid}) did not end in time; see {state.logs}")
        time.sleep(_POLL_SECONDS)
    return True
