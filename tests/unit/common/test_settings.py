from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from common.settings import SettingsError, dump, load, setting


@dataclass(frozen=True, slots=True)
class ExampleSettings:
    PREFIX: ClassVar[str] = "EXAMPLE"
    nats_url: str = setting(doc="where NATS is", env="NATS_URL")
    pepper: str = setting(doc="the secret pepper", secret=True)
    slots: int = setting(4, doc="requests at once")
    ratio: float = setting(0.5, doc="share")
    verbose: bool = setting(False, doc="more lines")
    folder: Path | None = setting(None, doc="where files go")
    models: tuple[str, ...] = setting((), doc="which models")


def test_fields_come_from_their_variables() -> None:
    loaded = load(
        ExampleSettings,
        {
            "UPLION_EXAMPLE_PEPPER": "s3cret",
            "NATS_URL": "nats://x",
            "UPLION_EXAMPLE_SLOTS": "8",
            "UPLION_EXAMPLE_VERBOSE": "yes",
            "UPLION_EXAMPLE_FOLDER": "/tmp/x",
            "UPLION_EXAMPLE_MODELS": "a, b",
            "UPLION_OTHER_THING": "ignored",
        },
    )
    assert loaded == ExampleSettings("nats://x", "s3cret", 8, 0.5, True, Path("/tmp/x"), ("a", "b"))
    assert "s3cret" not in repr(loaded)
    assert load(ExampleSettings, dump(loaded)) == loaded


def test_every_problem_is_told_at_once_and_no_secret_is_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        load(
            ExampleSettings, {"UPLION_EXAMPLE_SLOTS": "many", "UPLION_EXAMPLE_VERBOSE": "2", "UPLION_EXAMPLE_TYPO": "1"}
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    for name in ("NATS_URL", "PEPPER", "SLOTS", "VERBOSE", "TYPO is not a setting"):
        assert name in text
