"""The AIModel manifest: one typed schema for a laptop and a cluster.

These classes are the source for parsing, for validation with line-precise errors, and for the CRD (msgspec turns them
into JSON Schema). Field names are the manifest's own, hence camelCase.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta

from common import names

API_VERSION = "model.youxam.com/v1alpha1"
_MOST_BYTES = 1 << 20  # of a file; the next two are a text's
_MOST_NESTED = 50
_MOST_EVENTS = 50_000

Count = Annotated[int, Meta(ge=0, le=10_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000)]


class Synthetic(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """What the synthetic engine pretends to be."""

    tokensPerSecond: Annotated[float, Meta(ge=0)] = 0.0  # per request; 0 is as fast as the machine goes
    outputTokens: Positive = 16  # of an answer, unless the request asks for fewer
    firstTokenSeconds: Annotated[float, Meta(ge=0, le=3600)] = 0.0


class Spec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """What to run, and how much of it."""

    type: Literal["local", "remote"]
    model: Annotated[str, Meta(min_length=1, max_length=512)]  # a Hugging Face id, a folder, or the upstream's name
    replicas: Count = 1
    msgBacklogThreshold: Positive | None = None  # queued requests per replica before more are started
    image: str | None = None  # used on a cluster
    maxProcessNum: Positive = 64  # requests one worker holds at once
    engine: Literal["transformers", "synthetic", "openai"] | None = None  # None: by type
    contextLength: Positive | None = None  # tokens of prompt and answer; None: what the model was made for
    resources: dict[str, dict[str, str | int | float]] = {}  # as in a pod; used on a cluster
    env: dict[str, str] = {}  # of the worker's process
    labels: dict[str, str] = {}
    synthetic: Synthetic = Synthetic()


class Metadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """Names the model; whatever else Kubernetes keeps here is ignored."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class AIModel(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One model that the platform serves under `metadata.name`."""

    apiVersion: Literal["model.youxam.com/v1alpha1"]
    kind: Literal["AIModel"]
    metadata: Metadata
    spec: Spec

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def engine(self) -> str:
        """The engine that runs it."""
        return self.spec.engine or ("openai" if self.spec.type == "remote" else "transformers")

    def to_json(self) -> bytes:
        """What KV `models` holds."""
        return msgspec.json.encode(self)


class ManifestError(ValueError):
    """Some manifests are wrong: a line `source:line: path: problem` for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path) -> list[AIModel]:
    """Reads a file; a `spec.model` that is a folder beside the file becomes its absolute path."""
    try:
        text = read_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise ManifestError([f"{path}: cannot be read: {problem}"]) from problem
    return [_anchored(model, path.parent) for model in parse(text, str(path))]


def parse(text: str, source: str) -> list[AIModel]:
    """The manifests of a YAML (or JSON) text, one per document; raises ManifestError naming lines of `source`."""
    models: list[AIModel] = []
    problems: list[str] = []
    try:
        check_yaml(text)
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.CSafeLoader) if node is not None]
    except yaml.YAMLError as problem:
        raise ManifestError([_marked(problem, source, 1)]) from problem
    if not nodes:
        raise ManifestError([f"{source}:1: no AIModel in it"])
    for node in nodes:
        try:
            models.append(from_object(_plain(node)))
        except msgspec.ValidationError as problem:
            problems.append(_located(str(problem), node, source))
        except (yaml.YAMLError, RecursionError, ValueError) as problem:  # ValueError: 0x_ or 2001-13-45
            problems.append(_marked(problem, source, node.start_mark.line + 1))
    used = [model.name for model in models]
    problems += [
        f"{source}: metadata.name {name!r} is used twice" for name in sorted(set(used)) if used.count(name) > 1
    ]
    if problems:
        raise ManifestError(problems)
    return models


def from_object(value: object) -> AIModel:
    """From decoded JSON or YAML; raises msgspec.ValidationError whose text ends in the path."""
    model = msgspec.convert(value, AIModel)
    if model.spec.type == "remote" and model.engine == "transformers":
        raise msgspec.ValidationError("A remote model cannot run on the engine 'transformers' - at `$.spec.engine`")
    if model.spec.type == "local" and model.engine == "openai":
        raise msgspec.ValidationError("The engine 'openai' needs type 'remote' - at `$.spec.type`")
    return model


def from_json(data: bytes) -> AIModel:
    """What KV `models` holds; raises msgspec.MsgspecError, or ValueError for what no decoder can hold."""
    try:
        return from_object(msgspec.json.decode(data))
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem


def from_entry(key: str, data: bytes) -> AIModel:
    """An entry of KV `models`; raises as `from_json` does, also where it stands under the key of another model."""
    model = from_json(data)
    if names.token(model.name) != key:
        raise ValueError(f"it is named {model.name} and stands under another name's key")
    return model


def read_yaml(path: Path) -> str:
    """A file's text; raises OSError, UnicodeDecodeError, or YAMLError for one that is too large."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise yaml.YAMLError(f"larger than {_MOST_BYTES >> 20} MiB")
    return data.decode("utf-8-sig")


def check_yaml(text: str) -> None:
    """Raises YAMLError for a text that is nested too deeply, or too large; it names the place.

    To be called before a text is loaded: PyYAML recurses without a bound, and its C part then ends the process. The
    parser's events, which are counted here, come without recursion.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        problem = "nested too deeply" if depth > _MOST_NESTED else "too large" if count > _MOST_EVENTS else ""
        if problem:
            mark = event.start_mark
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)  # type: ignore[arg-type]  # C's mark too


def known_fields(path: str) -> tuple[str, ...]:
    """The fields of an object in a manifest, by its path; empty where any may stand."""
    kind = {"": AIModel, "spec": Spec, "spec.synthetic": Synthetic}.get(path)
    return kind.__struct_fields__ if kind else ()


def _anchored(model: AIModel, folder: Path) -> AIModel:
    candidate = (folder / model.spec.model).resolve()
    if model.spec.type == "local" and candidate.is_dir():
        return msgspec.structs.replace(model, spec=msgspec.structs.replace(model.spec, model=str(candidate)))
    return model


def _plain(node: yaml.Node) -> object:
    """The node's value; a key given twice is an error, since YAML readers disagree on which one wins."""
    for child in _walk(node):
        if isinstance(child, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in child.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key.start_mark)
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _walk(node: yaml.Node) -> list[yaml.Node]:
    found, queue = [node], [node]
    while queue:
        current = queue.pop()
        children: list[yaml.Node] = []
        if isinstance(current, yaml.MappingNode):
            children = [part for pair in current.value for part in pair]
        elif isinstance(current, yaml.SequenceNode):
            children = list(current.value)
        found += children
        queue += children
        if len(found) > 10_000:
            raise yaml.YAMLError("too large for a manifest")
    return found


def _marked(problem: Exception, source: str, line: int) -> str:
    mark = getattr(problem, "problem_mark", None)
    text = str(getattr(problem, "problem", problem)).partition("\n")[0]
    return f"{source}:{mark.line + 1 if mark else line}: not valid YAML: {text}"


def _located(problem: str, node: yaml.Node, source: str) -> str:
    """Turns msgspec's "Expected `int`, got `str` - at `$.spec.replicas`" into "file:7: spec.replicas: ..."."""
    text, _, path = problem.partition(" - at `$")
    unknown = re.search(r"unknown field `(\w+)`|required field `(\w+)`", text)
    steps = [step for step in re.split(r"[.\[\]`]+", path) if step and step != "..."]
    here = node
    for step in [*steps, *([unknown[1]] if unknown and unknown[1] else [])]:
        if isinstance(here, yaml.MappingNode):
            pair = next(((key, value) for key, value in here.value if key.value == step), None)
            if pair is None:
                break
            here = pair[1] if step != (unknown[1] if unknown else None) else pair[0]
    name = ".".join(steps) or "manifest"
    return f"{source}:{here.start_mark.line + 1}: {name}: {text}{_hint(text, steps)}"


def _hint(text: str, steps: list[str]) -> str:
    if "unknown field" in text:
        known = known_fields(".".join(steps))
        return f"; known are {', '.join(known)}" if known else ""
    if "Invalid enum value" in text:
        choices = {"type": "local or remote", "engine": "transformers, synthetic or openai", "kind": "AIModel"}
        choice = choices.get(steps[-1] if steps else "", API_VERSION if steps == ["apiVersion"] else "")
        return f"; must be {choice}" if choice else ""
    return ""
