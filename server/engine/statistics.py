"""What an engine has run since it started, in the terms of the Open Inference Protocol."""

import threading
import time

from pydantic import BaseModel, Field


class Duration(BaseModel):
    """How often something took time, and how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, times: int = 1) -> None:
        self.count += times
        self.ns += times * round(seconds * 1e9)


class BatchStatistics(BaseModel):
    """Executions of one batch size."""

    batch_size: int
    compute_input: Duration = Field(default_factory=Duration)
    compute_infer: Duration = Field(default_factory=Duration)
    compute_output: Duration = Field(default_factory=Duration)


class Statistics(BaseModel):
    """Totals; an inference is an image, an execution a batch.

    Of each batch, every request in it is said to have taken the whole time: so long did it wait for it.
    """

    last_inference: int = 0  # milliseconds since 1970
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = Field(default_factory=Duration)
    fail: Duration = Field(default_factory=Duration)
    queue: Duration = Field(default_factory=Duration)
    compute_input: Duration = Field(default_factory=Duration)
    compute_infer: Duration = Field(default_factory=Duration)
    compute_output: Duration = Field(default_factory=Duration)
    batches: list[BatchStatistics] = Field(default_factory=list)
    pending: int = 0  # requests that wait at the moment


class Recorder:
    """Counts for `Statistics`, from any thread."""

    def __init__(self) -> None:
        self._totals = Statistics()
        self._batches: dict[int, BatchStatistics] = {}
        self._lock = threading.Lock()

    def execution(self, rows: int, requests: int, gather: float, infer: float, scatter: float) -> None:
        """A batch of `rows` images: seconds to bring them together, to compute, to hand out the logits."""
        with self._lock:
            batch = self._batches.setdefault(rows, BatchStatistics(batch_size=rows))
            for duration, seconds in (("input", gather), ("infer", infer), ("output", scatter)):
                getattr(batch, f"compute_{duration}").add(seconds)
                getattr(self._totals, f"compute_{duration}").add(seconds, requests)
            self._totals.execution_count += 1
            self._totals.inference_count += rows
            self._totals.last_inference = round(time.time() * 1000)

    def request(self, *, ok: bool, queue: float, total: float) -> None:
        """A request that has ended, with the seconds it waited and took in all."""
        with self._lock:
            (self._totals.success if ok else self._totals.fail).add(total)
            self._totals.queue.add(queue)

    def snapshot(self, pending: int) -> Statistics:
        with self._lock:
            batches = [self._batches[rows].model_copy(deep=True) for rows in sorted(self._batches)]
            return self._totals.model_copy(deep=True, update={"batches": batches, "pending": pending})
