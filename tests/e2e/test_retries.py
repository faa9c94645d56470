"""The official SDK retries after a 5xx: failures cost nothing, the answer is billed once, under its `x-request-id`."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import pytest

from tests.kit.platform import Platform
from tests.kit.until import until_sync

MODEL = "flaky"
HELLO: Any = [{"role": "user", "content": "Hello!"}]
WORDS = ("Hel", "lo", " there")
USAGE = {"prompt_tokens": 11, "completion_tokens": 3}
MANIFEST = """\
apiVersion: model.youxam.com/v1alpha1
kind: AIModel
metadata: {{name: {name}}}
spec:
  type: remote
  model: upstream-model
  env: {{UPLION_UPSTREAM_URL: "http://127.0.0.1:{port}/v1"}}
"""


class _Flaky(BaseHTTPRequestHandler):
    """Fails at once, then in the middle of an answer, then answers; and so on."""

    protocol_version = "HTTP/1.1"
    calls: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.calls.append(body)
        turn = len(self.calls) % 3
        if turn == 1:
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for word in WORDS[: 1 if turn == 2 else None]:
            self._say({"choices": [{"index": 0, "delta": {"content": word}}]})
        if turn == 0:
            self._say({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._say({"choices": [], "usage": USAGE})
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _say(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def flaky(platform: Platform, tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """What the upstream was asked; its model has a price, and is gone after the test."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    manifest = tmp_path / "flaky.yaml"
    manifest.write_text(MANIFEST.format(name=MODEL, port=server.server_port))
    platform.cli("prices", "set", MODEL, "--input", "1000000", "--output", "1000000", "--currency", "USD")
    platform.cli("models", "apply", "-f", str(manifest))
    yield _Flaky.calls
    platform.cli("models", "delete", MODEL)
    server.shutdown()
    server.server_close()


def test_an_sdk_that_tries_again_pays_once(platform: Platform, flaky: list[dict[str, Any]]) -> None:
    created = platform.cli("keys", "create")
    answer = platform.client(api_key=created["key"]).chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "".join(WORDS)
    assert len(flaky) == 3

    async def query() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(platform.facts["postgres_url"], timeout=30)
        try:
            return await connection.fetch("SELECT * FROM usage_events WHERE key = $1 ORDER BY end_time", created["id"])
        finally:
            await connection.close()

    rows = until_sync(lambda: (found := asyncio.run(query())) and len(found) == 3 and found, 30)
    assert [row["status"] for row in rows] == ["failed", "failed", "completed"]
    assert len({(row["request_id"], row["attempt"]) for row in rows}) == 3
    assert [int(row["cost"]) for row in rows] == [0, 0, sum(USAGE.values())]
    assert answer._request_id == rows[-1]["request_id"]

    told = platform.cli("explain", rows[-1]["request_id"])
    (attempt,) = told["attempts"]
    assert (told["key"], attempt["status"], attempt["cost"], attempt["currency"]) == (
        created["id"],
        "completed",
        "14",
        "USD",
    )
    (failed,) = platform.cli("explain", rows[1]["request_id"])["attempts"]
    assert (failed["status"], failed["error_reason"], failed["policy"]) == ("failed", "UPSTREAM_FAILED", "waived")
