"""Which requests run together, without a process or a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from lct_deploy.bundle import open_bundle
from lct_deploy.errors import UsageError
from lct_deploy.runtime.base import RuntimeSpec
from server.engine.batcher import Batch, Batcher, Request
from server.engine.config import BatchSizes
from server.engine.connection import Connection
from server.engine.defaults import (
    FILL_SECONDS,
    Sharing,
    computes_on_cpu,
    default_batch,
    default_fill_delay,
    multiply_adds,
    share_cores,
)

OWNER = cast("Connection", None)  # a batcher hands it on unseen


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def request(number: int, images: int = 1, *, arrived: float = 100, deadline: float = 1000) -> Request:
    return Request(id=number, slots=tuple(range(images)), deadline=deadline, arrived=arrived, owner=OWNER)


def batcher(largest: int, *only: int, delay: float = 0, clock: Clock | None = None) -> Batcher:
    return Batcher(BatchSizes(largest=largest, only=only), max_delay=delay, clock=clock or Clock())


def take(queue: Batcher) -> Batch:
    batch = queue.take()
    assert isinstance(batch, Batch)
    return batch


def contents(batch: Batch) -> list[tuple[int, int, int]]:
    return [(part.request.id, part.start, part.stop) for part in batch.parts]


def test_images_are_counted_not_requests_and_come_in_their_order() -> None:
    queue = batcher(8)
    for number, images in enumerate((3, 4, 2, 1)):
        queue.put(request(number, images))
    assert queue.rows == 10
    assert contents(take(queue)) == [(0, 0, 3), (1, 0, 4), (2, 0, 1)]
    assert contents(take(queue)) == [(2, 1, 2), (3, 0, 1)]
    assert queue.rows == 0


def test_a_request_larger_than_a_batch_is_split_and_ends_once() -> None:
    queue = batcher(4)
    large = request(1, 10)
    queue.put(large)
    batches = [take(queue) for _ in range(3)]
    assert [batch.rows for batch in batches] == [4, 4, 2]
    assert [queue.finish(batch) for batch in batches] == [[], [], [large]]


def test_batches_that_finish_in_another_order_end_the_request_with_the_last() -> None:
    queue = batcher(4)
    large = request(1, 8)
    queue.put(large)
    first, second = take(queue), take(queue)
    assert queue.finish(second) == []
    assert queue.finish(first) == [large]


@pytest.mark.parametrize(
    ("waiting", "sizes"), [(1, [1]), (7, [4, 1, 1, 1]), (8, [8]), (13, [8, 4, 1]), (20, [8, 8, 4])]
)
def test_only_sizes_that_the_runtime_has(waiting: int, sizes: list[int]) -> None:
    queue = batcher(8, 1, 4, 8)
    queue.put(request(1, waiting))
    assert [take(queue).rows for _ in sizes] == sizes
    assert queue.rows == 0


def test_a_batch_waits_to_be_filled_until_its_first_request_has_waited_long_enough() -> None:
    clock = Clock()
    queue = batcher(2, delay=0.05, clock=clock)
    assert queue.take() is None
    queue.put(request(1, arrived=clock.now))
    clock.now += 0.02
    assert queue.take() == pytest.approx(0.03)
    queue.put(request(2, arrived=clock.now))
    assert take(queue).rows == 2  # full
    queue.put(request(3, arrived=clock.now))
    clock.now += 0.05
    assert contents(take(queue)) == [(3, 0, 1)]


def test_a_batch_waits_for_images_that_are_coming_and_fill_it_and_for_no_others() -> None:
    clock, coming = Clock(), [3]
    queue = Batcher(
        BatchSizes(largest=4), max_delay=0, fill_delay=0.01, coming=lambda: coming[0], clock=clock
    )
    queue.put(request(1, arrived=clock.now))
    assert queue.take() == pytest.approx(0.01)
    clock.now += 0.006
    assert queue.take() == pytest.approx(0.004)
    coming[0] = 2  # one could not be decoded
    assert take(queue).rows == 1
    coming[0] = 3
    queue.put(request(2, arrived=clock.now))
    clock.now += 0.011  # they take their time
    assert take(queue).rows == 1


def test_only_where_decoding_takes_the_same_cores() -> None:
    assert computes_on_cpu("onnxruntime", "cpu")
    assert computes_on_cpu("openvino", "cpu")
    assert not computes_on_cpu("onnxruntime", "cuda")
    assert not computes_on_cpu("tensorrt-rtx", "cpu")
    assert (default_fill_delay(on_cpu=True), default_fill_delay(on_cpu=False)) == (FILL_SECONDS, 0)


def test_what_is_past_its_deadline_is_not_run() -> None:
    clock = Clock()
    queue = batcher(4, clock=clock)
    late, good = request(1, deadline=clock.now + 1), request(2, deadline=clock.now + 5)
    queue.put(late)
    queue.put(good)
    clock.now += 2
    assert take(queue).expired == [late]
    assert contents(take(queue)) == [(2, 0, 1)]


def test_what_has_begun_is_finished_after_its_deadline_too() -> None:
    clock = Clock()
    queue = batcher(2, clock=clock)
    queue.put(request(1, 4, deadline=clock.now + 1))
    assert take(queue).rows == 2
    clock.now += 2
    assert take(queue).rows == 2


def test_a_cancelled_request_leaves_the_queue() -> None:
    queue = batcher(4)
    gone, good = request(1, 3), request(2, 2)
    queue.put(gone)
    queue.put(good)
    assert queue.cancel(gone)  # nothing of it runs: it has ended
    assert queue.rows == 2
    assert contents(take(queue)) == [(2, 0, 2)]


def test_a_request_that_is_cancelled_while_it_runs_ends_with_what_runs() -> None:
    queue = batcher(4)
    large = request(1, 10)
    queue.put(large)
    running = take(queue)
    assert not queue.cancel(large)
    assert queue.rows == 0
    assert queue.finish(running) == [large]


def test_one_that_is_cancelled_between_two_of_its_batches_ends_at_once() -> None:
    queue = batcher(4)
    large = request(1, 10)
    queue.put(large)
    assert queue.finish(take(queue)) == []
    assert queue.cancel(large)


def test_once_closed_nothing_waits_to_be_filled() -> None:
    queue = batcher(4, delay=60)
    queue.put(request(1))
    queue.close()
    assert take(queue).rows == 1
    assert queue.take() is None


def spec(compiled: tuple[int, ...], *, pads: bool = False) -> RuntimeSpec:
    return RuntimeSpec(
        runtime="onnxruntime",
        precision="fp32",
        height=8,
        width=8,
        num_classes=2,
        device="cpu",
        versions={},
        compiled_batches=compiled,
        pads=pads,
    )


@pytest.mark.parametrize(
    ("compiled", "pads", "asked", "largest", "only"),
    [
        ((), False, None, 5, ()),
        ((), False, 16, 16, ()),
        ((1, 8), False, None, 8, (1, 8)),
        ((8,), False, None, 8, (1, 8)),
        ((1, 8), False, 4, 1, (1,)),
        ((1, 4, 64), True, None, 64, ()),
        ((1, 4, 64), True, 32, 32, ()),
    ],
)
def test_batch_sizes_follow_the_runtime(
    compiled: tuple[int, ...], pads: bool, asked: int | None, largest: int, only: tuple[int, ...]
) -> None:
    assert BatchSizes.of(spec(compiled, pads=pads), asked, usual=5) == BatchSizes(largest=largest, only=only)


def cost_of(bundle: Path, arch: str, size: int) -> int | None:
    manifest = open_bundle(bundle).manifest
    pixels = manifest.input.model_copy(update={"height": size, "width": size})
    return multiply_adds(manifest.model_copy(update={"arch": arch, "input": pixels}))


@pytest.mark.parametrize(
    ("arch", "size", "batch", "sharing"),
    [
        ("lct_resnet20", 28, 8, Sharing(instances=1, threads=1)),
        ("resnet18", 64, 8, Sharing(instances=1, threads=6)),
        ("lct_resnet50", 224, 1, Sharing(instances=2, threads=3, alone=6)),
        ("onnx", 28, 1, Sharing(instances=1, threads=6)),
    ],
)
def test_defaults_are_chosen_by_what_the_network_costs(
    demo_bundle: Path, arch: str, size: int, batch: int, sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.defaults.available_cores", lambda: 6)
    cost = cost_of(demo_bundle, arch, size)
    assert default_batch(cost) == batch
    assert share_cores(cost, None, None, on_cpu=True) == sharing


@pytest.mark.parametrize(
    ("instances", "threads", "on_cpu", "cores", "sharing"),
    [
        (1, None, True, 6, Sharing(instances=1, threads=6)),
        (4, None, True, 6, Sharing(instances=4, threads=1)),
        (1000, None, True, 6, Sharing(instances=1000, threads=1)),
        (None, 5, True, 6, Sharing(instances=1, threads=5)),
        (3, 2, True, 6, Sharing(instances=3, threads=2)),
        (None, None, True, 1, Sharing(instances=1, threads=1)),
        (None, None, True, 3, Sharing(instances=2, threads=1, alone=3)),
        (None, None, False, 6, Sharing(instances=1, threads=6)),
    ],
)
def test_a_large_network_shares_the_cores_as_it_is_told(
    demo_bundle: Path,
    instances: int | None,
    threads: int | None,
    on_cpu: bool,
    cores: int,
    sharing: Sharing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.engine.defaults.available_cores", lambda: cores)
    cost = cost_of(demo_bundle, "lct_resnet50", 224)
    assert share_cores(cost, instances, threads, on_cpu=on_cpu) == sharing


def test_more_images_than_an_engine_takes_are_refused_with_the_command_that_mends_it() -> None:
    with pytest.raises(
        UsageError, match=r"at most 64 images at once\n--max-batch 64, or lct-deploy compile .*:128$"
    ):
        BatchSizes.of(spec((1, 4, 64), pads=True), 128, usual=1)
