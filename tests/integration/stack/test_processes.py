"""How children are started."""

import resource
from pathlib import Path

import pytest

from stack.children.processes import Program, spawn


@pytest.mark.parametrize(("soft", "hard", "expected"), [(256, 4096, 4096), (256, 20_000, 20_000), (300, 300, 300)])
async def test_a_child_may_open_as_many_files_as_the_system_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    output = tmp_path / "output"
    shell = Program("shell", ["/bin/sh", "-c", "ulimit -Sn; ulimit -Hn"], tmp_path / "log", output=output)
    assert await spawn(shell).wait() == 0
    assert [int(line) for line in output.read_text().split()] == [expected, hard]
