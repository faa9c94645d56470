"""What the merge gate makes of tests that fail once, always, or too often, on suites of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

ALWAYS = "def test_always():\n    assert 'the reason' == 'another'\n"
PASSES = "def test_passes():\n    pass\n"


def once(name: str) -> str:
    """A test that fails the first time it runs."""
    return f"""
def test_{name}():
    from pathlib import Path
    seen = Path(__file__).with_name("{name}")
    if not seen.exists():
        seen.touch()
        raise AssertionError("{name} failed once")
"""


def run(folder: Path, *tests: str) -> tuple[int, list[str]]:
    """Exit code and output of a run of these tests in the merge gate."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_suite.py").write_text("\n\n".join(tests))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.kit.plugins.merge_gate",
        "--merge-gate",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.splitlines()


def test_a_test_that_fails_once_is_named_and_forgiven(tmp_path: Path) -> None:
    code, lines = run(tmp_path, PASSES, once("first"))
    assert code == 0
    assert lines[-1].startswith("1 passed, 1 flaky in ")
    assert lines[-2].startswith("FLAKY test_suite.py::test_first: ")
    assert any("first failed once" in line for line in lines), "why it failed is shown"


def test_a_test_that_fails_always_fails_the_run(tmp_path: Path) -> None:
    code, lines = run(tmp_path, PASSES, ALWAYS)
    assert code == 1
    assert lines[-1].startswith("1 failed, 1 passed in ")
    assert any(line.startswith("FAILED test_suite.py::test_always") for line in lines)
    assert not any("FLAKY" in line for line in lines)


def test_a_flaky_test_beside_a_failing_one_is_named_and_the_run_fails(tmp_path: Path) -> None:
    code, lines = run(tmp_path, ALWAYS, once("first"), PASSES)
    assert code == 1
    assert lines[-1].startswith("1 failed, 1 passed, 1 flaky in ")
    assert any(line.startswith("FLAKY test_suite.py::test_first: ") for line in lines)


@pytest.mark.parametrize(("flaky", "passes"), [(2, True), (3, False)])
def test_more_than_two_flaky_tests_fail_the_run(tmp_path: Path, flaky: int, passes: bool) -> None:
    code, lines = run(tmp_path, *(once(f"number_{number}") for number in range(flaky)), PASSES)
    assert (code == 0) is passes
    assert lines[-1].startswith("1 passed, 2 flaky in " if passes else "3 failed, 1 passed in ")
    assert sum(line.startswith("FLAKY ") for line in lines) == flaky


def test_a_fixture_that_fails_once_makes_its_test_flaky(tmp_path: Path) -> None:
    fixture = "import pytest\n\n@pytest.fixture\ndef shaky():\n    test_first()\n"
    code, lines = run(
        tmp_path,
        once("first").replace("test_first", "_first"),
        fixture.replace("test_first", "_first"),
        "def test_with_it(shaky):\n    pass\n",
    )
    assert code == 0
    assert lines[-1].startswith("1 flaky in ")


def test_the_second_run_has_the_process_for_itself(tmp_path: Path) -> None:
    """Alone: what another test left in the process is gone."""
    leaves = "import sys\n\ndef test_leaves():\n    sys.left = True\n"
    minds = "import sys\n\ndef test_minds():\n    assert not hasattr(sys, 'left')\n"
    code, lines = run(tmp_path, leaves, minds)
    assert code == 0
    assert lines[-1].startswith("1 passed, 1 flaky in ")
