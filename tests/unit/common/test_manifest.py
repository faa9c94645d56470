from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common import manifest

SAMPLE = """\
apiVersion: model.youxam.com/v1alpha1
kind: AIModel
metadata: {name: ai-model-sample}
spec:
  type: local              # local | remote
  model: TinyLlama-1.1B    # a Hugging Face id, a folder, or the upstream's model name
  replicas: 3
  msgBacklogThreshold: 2   # * queued requests per replica before more are started
  image: user/image:tag    # * used on a cluster
  maxProcessNum: 256       # requests one worker holds at once
"""


def test_the_sample_manifest_is_accepted_unchanged() -> None:
    (model,) = manifest.parse(SAMPLE, "sample.yaml")
    assert model.name == "ai-model-sample"
    assert model.engine == "transformers"
    assert model.spec.replicas == 3
    assert model.spec.maxProcessNum == 256
    assert manifest.from_json(model.to_json()) == model


def test_the_two_starred_fields_are_optional() -> None:
    lines = [line for line in SAMPLE.splitlines() if "# *" not in line]
    (model,) = manifest.parse("\n".join(lines), "sample.yaml")
    assert model.spec.image is None
    assert model.spec.msgBacklogThreshold is None


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("replicas: 3", "replicas: three", 7, "spec.replicas: Expected `int`, got `str`"),
        ("replicas: 3", "replicaz: 3", 7, "unknown field `replicaz`; known are type, model, replicas"),
        ("replicas: 3", "replicas: -1", 7, "spec.replicas: Expected `int` >= 0"),
        ("replicas: 3", "replicas: 3\n  replicas: 4", 8, "'replicas' is given twice"),
        ("replicas: 3", "env: {A: 1}", 7, "spec.env"),
        ("type: local", "type: lokal", 5, "must be local or remote"),
        ("kind: AIModel", "kind: Deployment", 2, "must be AIModel"),
        ("v1alpha1", "v9", 1, "must be model.youxam.com/v1alpha1"),
        ("  model: TinyLlama-1.1B", "  #", 5, "missing required field `model`"),
        ("ai-model-sample", "Not A Name", 3, "metadata.name"),
        ("type: local", "type: remote\n  engine: transformers", 6, "cannot run on the engine 'transformers'"),
        ("spec:", "spec: [", 6, "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, line: int, says: str) -> None:
    with pytest.raises(manifest.ManifestError) as caught:
        manifest.parse(SAMPLE.replace(old, new), "sample.yaml")
    assert str(caught.value).startswith(f"sample.yaml:{line}: "), caught.value
    assert says in str(caught.value)


def test_every_wrong_document_of_a_file_is_reported() -> None:
    text = SAMPLE.replace("replicas: 3", "replicas: x") + "---\n" + SAMPLE.replace("type: local", "type: x")
    with pytest.raises(manifest.ManifestError) as caught:
        manifest.parse(text, "two.yaml")
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["7", "16"]


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(manifest.ManifestError, match="used twice"):
        manifest.parse(SAMPLE + "---\n" + SAMPLE, "two.yaml")


def test_a_folder_beside_the_file_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    file = tmp_path / "model.yaml"
    file.write_text(SAMPLE.replace("TinyLlama-1.1B", "weights"))
    (model,) = manifest.load(file)
    assert model.spec.model == str(tmp_path / "weights")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(manifest.ManifestError, match="cannot be read"):
        manifest.load(tmp_path / "none.yaml")


@example("0x_")
@example("2001-13-45")
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    try:
        manifest.parse(text, "x.yaml")
    except manifest.ManifestError as problem:
        assert problem.problems


def test_the_schema_can_become_a_crd() -> None:
    schema = msgspec.json.schema(manifest.AIModel)
    assert "replicas" in schema["$defs"]["Spec"]["properties"]
