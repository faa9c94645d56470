"""What is refused before anything of a model is loaded."""

import json

import pytest

from inference.engines.transformers.model_files import ModelFilesError, model_folder


def folder(path, config=None, **files):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else config))
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content)
    return path


def test_a_folder_with_safetensors_is_taken(tmp_path):
    path = folder(tmp_path / "m", model__safetensors="")
    assert model_folder(str(path)) == path


@pytest.mark.parametrize(
    ("config", "files", "why"),
    [
        ({"model_type": "llama"}, {"pytorch_model__bin": ""}, "no safetensors weights"),
        ({}, {"model__safetensors": ""}, "model_type"),
        ([], {"model__safetensors": ""}, "model_type"),
        (
            {"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
            {"model__safetensors": "", "evil__py": "raise SystemExit"},
            "code of its own",
        ),
        (
            {"model_type": "llama"},
            {
                "model__safetensors": "",
                "model__safetensors__index__json": json.dumps({"weight_map": {"w": "../../other.safetensors"}}),
            },
            "outside its folder",
        ),
        ({"model_type": "llama"}, {"model__safetensors": "", "model__safetensors__index__json": "{"}, "cannot be read"),
    ],
)
def test_what_could_run_code_or_reach_outside_is_refused(tmp_path, config, files, why):
    path = folder(tmp_path / "m", config, **files)
    with pytest.raises(ModelFilesError, match=why):
        model_folder(str(path))


def test_a_folder_that_is_none_and_one_that_is_missing(tmp_path):
    with pytest.raises(ModelFilesError, match=r"no config\.json"):
        model_folder(str(tmp_path))
    with pytest.raises(ModelFilesError, match="There is no folder"):
        model_folder(str(tmp_path / "missing"))


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def away(*_, **__):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    with pytest.raises(ModelFilesError, match=r"hub cannot be reached; give a folder instead\.$"):
        model_folder("someone/something")
