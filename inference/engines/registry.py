"""The engines by the names that manifests give them. Only the one that runs is imported: torch takes seconds."""

from collections.abc import Callable

from common.manifest import AIModel
from inference.engines.engine import Engine
from inference.settings import InferenceSettings


def engine_for(model: AIModel, settings: InferenceSettings) -> Engine:
    """The engine that the manifest names, not started yet. Raises what its settings are refused with."""
    return _ENGINES[model.engine](model, settings)


def _synthetic(model: AIModel, settings: InferenceSettings) -> Engine:
    from inference.engines.synthetic import SyntheticEngine

    return SyntheticEngine(model.spec.synthetic, model.spec.contextLength)


def _transformers(model: AIModel, settings: InferenceSettings) -> Engine:
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


def _openai(model: AIModel, settings: InferenceSettings) -> Engine:
    from inference.engines.upstream.engine import UpstreamEngine

    return UpstreamEngine(
        model=model.spec.model,
        url=settings.upstream_url,
        key=settings.upstream_key,
        slots=model.spec.maxProcessNum,
        context_tokens=model.spec.contextLength,
        timeout_seconds=settings.upstream_timeout_seconds,
    )


_ENGINES: dict[str, Callable[[AIModel, InferenceSettings], Engine]] = {
    "synthetic": _synthetic,
    "transformers": _transformers,
    "openai": _openai,
}
