"""Which engine runs a model. Each is imported only when it is the one: torch costs seconds."""

from common.manifest import AIModel
from inference.engine import Engine
from inference.settings import InferenceSettings


def engine_for(model: AIModel, settings: InferenceSettings) -> Engine:
    """The engine that the manifest asks for, not yet started."""
    if model.engine == "synthetic":
        from inference.synthetic import SyntheticEngine

        return SyntheticEngine(model.spec.synthetic, model.spec.contextLength)
    raise NotImplementedError(model.engine)
