"""What is left of a budget caps an answer; the official SDKs take it, and `uplion explain` says it later."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from uplion.inference.v1.chat_pb2 import ChatMessage, ChatRequest
from uplion.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.kit.platform import REPOSITORY, SYNTHETIC, Platform
from tests.kit.until import until_sync

HELLO: Any = [{"role": "user", "content": "Hello!"}]
RULE = "key/tokens/life"
SMALL = "tokens/life=120"  # more than a prompt is reserved at, less than any answer of the synthetic model


def key(platform: Platform, *limits: str) -> dict[str, Any]:
    arguments = [part for limit in limits for part in ("--limit", limit)]
    return dict(platform.cli("keys", "create", *arguments))


def is_cut(detail: Any) -> bool:
    return bool(detail and detail["reason"] == "budget" and detail["limit"] == RULE and detail["max_output_tokens"] > 0)


def test_the_python_sdk_takes_an_answer_that_a_budget_ends(platform: Platform) -> None:
    whole = platform.client(api_key=key(platform, SMALL)["key"]).chat.completions.create(
        model=SYNTHETIC, messages=HELLO
    )
    assert whole.choices[0].finish_reason == "length"
    detail: Any = (whole.model_extra or {})["x-uplion"]
    assert is_cut(detail)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == detail["max_output_tokens"]
    chunks = list(
        platform.client(api_key=key(platform, SMALL)["key"]).chat.completions.create(
            model=SYNTHETIC, messages=HELLO, stream=True
        )
    )
    assert chunks[-1].choices[0].finish_reason == "length"
    assert is_cut((chunks[-1].model_extra or {})["x-uplion"])
    assert not any((chunk.model_extra or {}).get("x-uplion") for chunk in chunks[:-1])


def test_the_node_sdk_takes_it_too(platform: Platform) -> None:
    tools, node = REPOSITORY / "tools/node_modules", Path(sys.executable).with_name("node")
    if not (tools / "openai").exists() or not node.exists():
        if os.environ.get("CI"):
            raise AssertionError("the Node SDK is not installed: make test installs it")
        pytest.skip("the Node SDK is not installed: make test installs it")
    done = subprocess.run(
        [str(node), str(REPOSITORY / "tests/e2e/node/budget.mjs")],
        env={
            "PATH": os.environ["PATH"],
            "TOOLS": str(tools),
            "BASE_URL": platform.facts["base_url"],
            "API_KEY": key(platform, SMALL)["key"],
            "MODEL": SYNTHETIC,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["finish"] == "length"
    assert is_cut(told["detail"])
    assert told["refused"] == {"name": "RateLimitError", "status": 429, "code": "insufficient_quota", "request": True}


def test_a_native_caller_finds_it_in_a_field(platform: Platform) -> None:
    metadata = (("authorization", f"Bearer {key(platform, SMALL)['key']}"), ("x-uplion-model", SYNTHETIC))
    with grpc.insecure_channel(platform.facts["grpc_address"]) as channel:
        answer = InferenceServiceStub(channel).Chat(
            ChatRequest(model=SYNTHETIC, messages=[ChatMessage(role="user", content="Hello!")]),
            metadata=metadata,
            timeout=60,
        )
    assert answer.budget_cut.limit == RULE
    assert answer.usage.output_tokens == answer.budget_cut.max_output_tokens > 0


def test_a_refusal_and_a_shadow_rule_are_explained_under_the_id_that_the_client_was_told(platform: Platform) -> None:
    made = key(platform, "tokens/day=1")
    client = platform.client(api_key=made["key"], max_retries=0)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model=SYNTHETIC, messages=HELLO, max_tokens=2)
    assert refused.value.code == "insufficient_quota"
    told = until_sync(lambda: explained(platform, str(refused.value.request_id)), 30)
    assert (told["key"], told["model"], told["attempts"]) == (made["id"], SYNTHETIC, [])
    decision = told["decision"]
    assert (decision["rule"], decision["reason"], decision["limit"]) == ("key/tokens/day", "INSUFFICIENT_QUOTA", 1)
    assert decision["clear_time"].endswith("T00:00:00Z")

    watched = key(platform, "shadow:tokens/day=1")
    answer = platform.client(api_key=watched["key"]).chat.completions.create(
        model=SYNTHETIC, messages=HELLO, max_tokens=2
    )
    told = until_sync(
        lambda: (
            (found := explained(platform, str(answer._request_id)))
            and found["attempts"]
            and found["decision"]
            and found
        ),
        30,
    )
    assert (told["decision"]["shadow"], told["attempts"][0]["status"]) == (True, "completed")
    assert told["attempts"][0]["output_tokens"] == 2


def explained(platform: Platform, request_id: str) -> dict[str, Any] | None:
    """None while nothing is known of it yet."""
    try:
        return dict(platform.cli("explain", request_id))
    except AssertionError as unknown:
        assert "Nothing is known" in str(unknown)
        return None
