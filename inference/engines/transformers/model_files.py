"""Finds a model's files: a folder, or a Hugging Face id. Safetensors only, and never code from the model."""

import json
from pathlib import Path

_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")
_WEIGHTS = ".safetensors"
_HUB_SECONDS = 10.0


class ModelFilesError(Exception):
    """The model cannot be loaded; the message is one sentence that says what to do."""


def model_folder(source: str) -> Path:
    """The checked folder of a model; a Hugging Face id is downloaded (or found in the cache) first."""
    folder = Path(source)
    if folder.is_dir():
        check(folder, source)
        return folder
    if source.startswith(("/", "./", "../", "~")) or source.count("/") > 1:
        raise ModelFilesError(f"There is no folder {source}.")
    folder = _from_hub(source)
    check(folder, source)
    return folder


def check(folder: Path, name: str) -> None:
    """Refuses what would run code or reach outside the folder, before anything is loaded."""
    config = _json(folder / "config.json", name)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelFilesError(f"The config.json of {name} does not name a model_type.")
    weights = [path.name for path in folder.iterdir() if path.suffix == _WEIGHTS]
    if not weights:
        raise ModelFilesError(
            f"{name} has no safetensors weights, and other formats can hold code; convert it to safetensors."
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _json(index, name).get("weight_map")
        named = weight_map.values() if isinstance(weight_map, dict) else ()
        strange = sorted({str(part) for part in named if "/" in str(part) or "\\" in str(part)})
        if strange:
            raise ModelFilesError(f"The index of {name} points outside its folder: {strange[0]}.")
    if "auto_map" in config and not _known(model_type):
        raise ModelFilesError(
            f"{name} needs code of its own (model_type {model_type}), which is never run; "
            "use a model that transformers knows."
        )


def _known(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def _json(path: Path, name: str) -> dict[str, object]:
    """A JSON file; anything else than an object is read as an empty one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise ModelFilesError(f"{name} has no {path.name}, so it is not a model folder.") from problem
    except (OSError, ValueError) as problem:
        raise ModelFilesError(f"{path.name} of {name} cannot be read: {problem}.") from problem
    return document if isinstance(document, dict) else {}


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(source, allow_patterns=list(_WANTED), etag_timeout=_HUB_SECONDS))
    except HFValidationError as problem:
        raise ModelFilesError(f"{source} is neither a folder nor a Hugging Face id.") from problem
    except GatedRepoError as problem:
        raise ModelFilesError(f"{source} is gated: accept its terms on the hub and set HF_TOKEN.") from problem
    except RepositoryNotFoundError as problem:
        raise ModelFilesError(f"{source} is neither a folder nor a model on the Hugging Face hub.") from problem
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as problem:
        raise ModelFilesError(
            f"{source} is not on this machine and the Hugging Face hub cannot be reached; give a folder instead."
        ) from problem
