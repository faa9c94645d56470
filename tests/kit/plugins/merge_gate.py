"""pytest plugin for `--merge-gate`: each test that failed is run once more, alone, after the run and its servers ended.

A test that passes then is flaky: the last lines name it and it does not fail the run, unless more than two are. (The
library pytest-rerunfailures repeats a test in its place, beside whatever made it fail, and can only forgive all of them
or none.)
"""

import subprocess
import sys

import pytest

_FORGIVEN = 2
_MOST_RERUNS = 10  # more failures than this have a common cause
_RERUN_SECONDS = 600.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--merge-gate", action="store_true", help="run each failed test once more, alone, and judge by that"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--merge-gate"):
        config.pluginmanager.register(MergeGate(), "merge gate")


class MergeGate:
    """Reruns what failed and moves the reports of flaky tests out of the failures."""

    def __init__(self) -> None:
        self._flaky: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus != pytest.ExitCode.TESTS_FAILED:
            return
        stats = _reporter(session.config).stats
        reports = [report for category in ("failed", "error") for report in stats.get(category, [])]
        failed = list(dict.fromkeys(report.nodeid for report in reports))
        if len(failed) > _MOST_RERUNS:
            return
        self._flaky = [test for test in failed if _passes_alone(session.config, test)]
        if len(self._flaky) > _FORGIVEN:
            return
        for category in ("failed", "error"):
            kept = [report for report in stats.pop(category, []) if report.nodeid not in self._flaky]
            if kept:
                stats[category] = kept
        if self._flaky:
            stats["flaky"] = [report for report in reports if report.nodeid in self._flaky]
        if len(self._flaky) == len(failed):
            session.exitstatus = pytest.ExitCode.OK

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, config: pytest.Config) -> None:
        if not self._flaky:
            return
        reporter = _reporter(config)
        for report in reporter.stats.get("flaky", []):
            reporter.write_sep("_", f"flaky: {report.nodeid} ({report.when})")
            reporter.write_line(report.longreprtext)
            for name, text in report.sections:
                reporter.write_sep("-", name)
                reporter.write_line(text)
        reporter.write_sep("=", "flaky tests")
        for test in self._flaky:
            reporter.write_line(f"FLAKY {test}: it failed in the run and passed alone; mend it before new work")
        if len(self._flaky) > _FORGIVEN:
            reporter.write_line(
                f"The run fails: {len(self._flaky)} tests are flaky, and {_FORGIVEN} are the most allowed"
            )


def _reporter(config: pytest.Config) -> pytest.TerminalReporter:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    assert isinstance(reporter, pytest.TerminalReporter)
    return reporter


def _passes_alone(config: pytest.Config, test: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-m", config.option.markexpr, test]
    try:
        done = subprocess.run(command, cwd=config.rootpath, capture_output=True, timeout=_RERUN_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
