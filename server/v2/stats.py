"""What models have run, in the terms of the statistics extension."""

from typing import Any

from server.engine.statistics import Duration, Statistics
from server.served import ServedModel

_NOTHING = {"count": 0, "ns": 0}
_STAGES = ("compute_input", "compute_infer", "compute_output")


async def model_statistics(model: ServedModel) -> dict[str, Any]:
    """One entry of `model_stats`."""
    statistics = await model.statistics()
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": statistics.last_inference,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": _inference_stats(statistics),
        "response_stats": {},
        "batch_stats": [
            {"batch_size": batch.batch_size, **{stage: _duration(getattr(batch, stage)) for stage in _STAGES}}
            for batch in statistics.batches
        ],
        "memory_usage": [],
    }


def _inference_stats(statistics: Statistics) -> dict[str, Any]:
    names = ("success", "fail", "queue", *_STAGES)
    durations = {name: _duration(getattr(statistics, name)) for name in names}
    return {**durations, "cache_hit": _NOTHING, "cache_miss": _NOTHING}  # no answer is kept


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
