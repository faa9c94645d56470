"""Texts that would end a parser, or keep it busy: each is refused at once, naming its line."""

import json
import time
from pathlib import Path

import pytest
import yaml

from cli.ledger_verification import verify
from common import manifest

DEEP = 50_000


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines)


TEXTS = {
    "a list": "spec:\n  a: " + "[" * DEEP + "]" * DEEP,
    "a list that does not end": "spec:\n  a: " + "[" * DEEP,
    "a list in lines": "spec:\n  " + "- " * DEEP + "x",
    "an indented list": "spec:\n" + "\n".join(" " * depth + "-" for depth in range(700)),
    "an object": "spec:\n  a: " + "{a: " * DEEP + "1" + "}" * DEEP,
    "JSON": '{"spec":\n' + '{"a":' * DEEP + "1" + "}" * DEEP + "}",
    "keys": "spec:\n  " + "? " * DEEP + "x",
    "many documents": "\n---\n" + "---\nx\n" * 60_000,
    "a mapping as a key": "spec:\n  ? [a]\n  : b",
    "an alias in itself": "spec: &a [*a]\nb: x",
    "laughs": laughs(12),
    "merged laughs": "\n".join(
        ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9))]
    ),
    "a NUL": "spec:\n  a: \0",
    "a long number": "spec:\n  a: " + "9" * 5000,
    "a tag": "spec:\n  a: !!python/object/apply:os.system [id]",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_hostile_manifest_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(text)
    began = time.process_time()
    with pytest.raises(manifest.ManifestError) as refused:
        manifest.load(file)
    assert time.process_time() - began < 10  # a tenth of a second alone
    (problem,) = refused.value.problems[:1]
    assert problem.startswith(f"{file}:")
    assert problem.removeprefix(f"{file}:").partition(":")[0].isdigit()
    assert "\n" not in problem
    assert len(problem) < 1000


def test_the_line_of_a_deep_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(manifest.ManifestError, match=r"^m:3: not valid YAML: nested too deeply$"):
        manifest.parse("a: 1\nb:\n  c: " + "[" * DEEP, "m")


def test_a_file_that_never_ends_is_not_read_to_its_end() -> None:
    with pytest.raises(manifest.ManifestError, match="larger than 1 MiB"):
        manifest.load(Path("/dev/zero"))


def test_a_usual_depth_and_a_byte_order_mark_pass(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"\xef\xbb\xbfa: " + b"[" * 49 + b"]" * 49)
    manifest.check_yaml(manifest.read_yaml(file))
    with pytest.raises(yaml.YAMLError):
        manifest.check_yaml("a: " + "[" * 50 + "]" * 50)


@pytest.mark.parametrize("line", ["[" * DEEP, '{"type":' * DEEP, "9" * 5000, '{"type": []}', "[]", "1e999", "\ud800"])
def test_a_hostile_line_of_a_ledger_is_a_problem_and_no_crash(line: str) -> None:
    report = verify([line, json.dumps({"type": "ledger"})])
    assert report.problems[0].startswith("line 1 cannot be read")
