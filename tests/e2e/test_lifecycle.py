"""Starting, stopping and being killed, as a user meets it."""

import concurrent.futures
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from stack.ports import free_port
from tests.kit.platform import REPOSITORY, SYNTHETIC, UPLION, Platform, Up
from tests.kit.processes import alive, mentioning
from tests.kit.until import until_sync

MODEL = str(REPOSITORY / "tests/e2e/synthetic.yaml")
HELLO: Any = [{"role": "user", "content": "Hello!"}]


def test_sigterm_under_load_finishes_what_is_running(start_platform: Up) -> None:
    platform = start_platform("-f", MODEL)
    client = platform.client(max_retries=0)

    started: list[bool] = []

    def stream() -> tuple[int, str | None]:
        tokens, finish = 0, None
        for chunk in client.chat.completions.create(
            model=SYNTHETIC, messages=HELLO, max_tokens=100, stream=True, stream_options={"include_usage": True}
        ):
            if chunk.choices:
                if chunk.choices[0].delta.content and not tokens:
                    tokens = 1
                    started.append(True)
                finish = chunk.choices[0].finish_reason or finish
            elif chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
        return tokens, finish

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        running = [pool.submit(stream) for _ in range(16)]
        until_sync(lambda: len(started) == 16)  # 100 tokens at 50 a second: all of them are in the middle
        assert platform.end(signal.SIGTERM) == 0
        for future in running:
            tokens, finish = future.result(60)
            assert (finish, tokens) == ("length", 100)
    assert not [pid for pid in platform.facts["pids"].values() if alive(pid)]


def test_kill_9_of_the_supervisor_leaves_no_process(start_platform: Up) -> None:
    platform = start_platform("-f", MODEL)
    assert len(mentioning(platform.state)) > 5
    os.kill(platform.facts["pids"]["supervisor"], signal.SIGKILL)
    platform.process.wait(60)
    until_sync(lambda: not mentioning(platform.state))
    # One that is being torn down has no arguments any more, but lives for another moment.
    until_sync(lambda: not [pid for pid in platform.facts["pids"].values() if alive(pid)])


def test_data_survives_down_and_up_and_killed_parts_come_back(start_platform: Up) -> None:
    platform = start_platform("-f", MODEL)
    created = platform.cli("keys", "create")
    _ask(platform, created["key"])
    until_sync(lambda: [row for row in platform.cli("usage", "--by", "key") if row["group"] == created["id"]])
    assert platform.end(signal.SIGINT) == 0

    again = start_platform(state=platform.state)
    assert again.facts["api_key"] == platform.facts["api_key"]
    _ask(again, created["key"])  # the model is still there, too
    until_sync(
        lambda: [
            row for row in again.cli("usage", "--by", "key") if row["group"] == created["id"] and row["requests"] == 2
        ]
    )
    for part in ("router", "nats", "valkey", "postgres", "envoy"):
        os.kill(again.facts["pids"][part], signal.SIGKILL)
        until_sync(lambda: _answers(again, created["key"]))
    until_sync(again.is_healthy)


def _ask(platform: Platform, key: str) -> None:
    client = platform.client(api_key=key)
    answer = client.chat.completions.create(model=SYNTHETIC, messages=HELLO, max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def _answers(platform: Platform, key: str) -> bool:
    try:
        answer = httpx2.post(
            f"{platform.facts['base_url']}/chat/completions",
            json={"model": SYNTHETIC, "messages": HELLO, "max_tokens": 3},
            headers={"authorization": f"Bearer {key}"},
            timeout=20,
        )
    except httpx2.HTTPError:
        return False
    return answer.status_code == 200


def test_a_port_in_use_is_one_clear_sentence(start_platform: Up, tmp_path: Path) -> None:
    platform = start_platform("-f", MODEL)
    port = platform.facts["base_url"].split(":")[2].split("/")[0]
    done = subprocess.run(
        [UPLION, "up", "--json", "--state", str(tmp_path), "--port", port], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert port in done.stderr
    assert "Traceback" not in done.stderr
    until_sync(lambda: not mentioning(tmp_path))


@pytest.mark.parametrize(("text", "says"), [("kind: Nope", ":1:"), ("a: [", "not valid YAML")])
def test_a_bad_manifest_starts_nothing(tmp_path: Path, text: str, says: str) -> None:
    manifest = tmp_path / "bad.yaml"
    manifest.write_text(text)
    state = tmp_path / "state"
    done = subprocess.run(
        [UPLION, "up", "--json", "--state", str(state), "--port", str(free_port()), "-f", str(manifest)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not mentioning(state)
