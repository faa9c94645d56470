"""Which engine runs a model. Each is imported only when it is the one: torch costs seconds."""

from common.manifest import AIModel
from inference.engines.engine import Engine
from inference.settings import InferenceSettings


def engine_for(model: AIModel, settings: InferenceSettings) -> Engine:
    """The engine that the manifest asks for, not yet started."""
    if model.engine == "synthetic":
        from inference.engines.synthetic import SyntheticEngine

        return SyntheticEngine(model.spec.synthetic, model.spec.contextLength)
    if model.engine == "transformers":
        from inference.engines.transformers.fast_import import fast_import

        with fast_import():
            from inference.engines.transformers.engine import TransformersEngine
            from inference.engines.transformers.loading import EngineResources

        resources = EngineResources(
            slots=model.spec.maxProcessNum,
            context_tokens=model.spec.contextLength,
            cache_bytes=settings.cache_bytes,
            threads=settings.threads,
            device=settings.device,
        )
        return TransformersEngine(model.spec.model, resources)
    from inference.engines.upstream.engine import UpstreamEngine

    return UpstreamEngine(
        model=model.spec.model,
        url=settings.upstream_url,
        key=settings.upstream_key,
        slots=model.spec.maxProcessNum,
        context_tokens=model.spec.contextLength,
        timeout_seconds=settings.upstream_timeout_seconds,
    )
