"""The official Node SDK, unmodified (tests/e2e/node/client.mjs)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.platform import DEMO, REPOSITORY, Platform


def test_the_node_sdk_works_unmodified(platform: Platform) -> None:
    tools = REPOSITORY / "tools/node_modules"
    node = Path(sys.executable).with_name("node")
    if not (tools / "openai").exists() or not node.exists():
        if os.environ.get("CI"):
            raise AssertionError("the Node SDK is not installed: make test installs it")
        pytest.skip("the Node SDK is not installed: make test installs it")
    done = subprocess.run(
        [str(node), str(REPOSITORY / "tests/e2e/node/client.mjs")],
        env={
            "PATH": os.environ["PATH"],
            "TOOLS": str(tools),
            "BASE_URL": platform.facts["base_url"],
            "API_KEY": platform.facts["api_key"],
            "MODEL": DEMO,
        },
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["chat"] == told["streamed"] != ""
    assert told["finish"] == "stop"
    assert told["usage"]["completion_tokens"] == told["chatUsage"]["completion_tokens"] > 0
    assert told["dimensions"] > 0
    assert DEMO in told["models"]
    assert told["unknownKey"] == {
        "name": "AuthenticationError",
        "status": 401,
        "code": "invalid_api_key",
        "request": True,
    }
    assert told["unknownModel"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found", "request": True}
    assert told["badValue"] == {"name": "BadRequestError", "status": 400, "code": "invalid_value", "request": True}
