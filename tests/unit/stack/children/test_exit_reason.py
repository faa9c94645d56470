"""The last words of a process."""

import json
from pathlib import Path

from stack.children.exit_reason import exit_reason

GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "x.py", line 86, in guard
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "y.py", line 1, in start
    | httpx2.ConnectError: [Errno -2] Name or service not known
    |
    | Traceback (most recent call last):
    |   File "z.py", line 86, in _from_hub
    |     raise ModelFilesError(
    | inference.engines.transformers.model_files.ModelFilesError: demo is not on this machine; give a folder instead.
    +------------------------------------"""


def test_the_cause_of_a_logged_exception(tmp_path: Path) -> None:
    log = tmp_path / "log"
    record = {"level": "error", "event": "service failed", "error": GROUP}
    log.write_text(json.dumps({"level": "info", "event": "x"}) + "\n" + json.dumps(record) + "\nplain noise\n")
    assert exit_reason(log) == "demo is not on this machine; give a folder instead."


def test_the_last_line_of_a_bare_traceback(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('Traceback (most recent call last):\n  File "<string>", line 1\nValueError: no such thing\n')
    assert exit_reason(log) == "ValueError: no such thing"


def test_the_last_lines_of_a_plain_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\nthree\n")
    assert exit_reason(log) == "two | three"


def test_only_what_was_written_since(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\n")
    assert exit_reason(log, 4) == ""
    assert exit_reason(tmp_path / "none") == ""
    assert exit_reason(log, 1000) == "old"  # the log was emptied meanwhile
