"""Which build of torch `make setup` takes, and what it says of it."""

import importlib.util
from pathlib import Path

import pytest

_FILE = Path(__file__).parents[3] / "scripts" / "torch_build.py"
_spec = importlib.util.spec_from_file_location("torch_build", _FILE)
assert _spec is not None
assert _spec.loader is not None
torch_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(torch_build)

EXTRA = f"--extra-index-url {torch_build.CPU_INDEX}"


@pytest.mark.parametrize(
    ("wanted", "driver", "reachable", "platform", "arguments", "says"),
    [
        ("", False, True, "linux", EXTRA, "CPU build (about 200 MB), since there is no NVIDIA driver; TORCH=cuda"),
        ("", False, False, "linux", "", "default build of pip's index (on Linux with CUDA, about 3 GB"),
        ("", True, True, "linux", "", "for the NVIDIA driver of this machine; TORCH=cpu"),
        ("", False, True, "darwin", "", "which has no CUDA here"),
        ("cpu", True, True, "linux", EXTRA, "as TORCH=cpu says"),
        ("cuda", False, True, "linux", "", "as TORCH=cuda says"),
    ],
)
def test_the_driver_decides_unless_somebody_does(wanted, driver, reachable, platform, arguments, says):
    found, line = torch_build.choose(wanted, lambda: driver, lambda: reachable, platform)
    assert found == arguments
    assert says in line


@pytest.mark.parametrize(("wanted", "says"), [("cpu", "does not answer"), ("rocm", "neither cpu nor cuda")])
def test_a_wish_that_cannot_be_met_ends_the_setup(wanted, says):
    with pytest.raises(ValueError, match=says):
        torch_build.choose(wanted, lambda: False, lambda: False, "linux")


def test_a_driver_is_known_by_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not torch_build.has_driver(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert torch_build.has_driver(tmp_path)


def test_a_machine_where_nvidia_smi_is_installed_has_one(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert torch_build.has_driver(tmp_path)
