"""An unmodified tritonclient, synchronous and asyncio, asks a real server."""

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

import lct_deploy
from tests.v2 import Expected, encoded, expected, serving

# The asyncio client does not read answers of which it needs the status alone.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")

COMPUTE = ("compute_input", "compute_infer", "compute_output")


@pytest.fixture(scope="module")
def host(demo_bundle: Path) -> Generator[str]:
    with serving(demo_bundle) as url:
        yield url.removeprefix("http://")
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Expected:
    return expected(demo_bundle)


class Asyncio:
    """The asyncio client with the methods of the synchronous one."""

    def __init__(self, host: str) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            async with triton_aio.InferenceServerClient(self._host) as client:
                method: Callable[..., Awaitable[Any]] = getattr(client, name)
                return await method(*arguments, **options)

        return lambda *arguments, **options: asyncio.run(call(*arguments, **options))


@pytest.fixture(scope="module", params=["sync", "asyncio"])
def client(request: pytest.FixtureRequest, host: str) -> Generator[Any]:
    if request.param == "asyncio":
        yield Asyncio(host)
    else:
        with triton.InferenceServerClient(host) as client:
            yield client


def image_input(images: NDArray[np.uint8], *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    return tensor.set_data_from_numpy(images, binary_data=binary)


def file_input(*files: bytes, axes: int = 1) -> triton.InferInput:
    elements = np.array(files, np.object_).reshape((len(files), 1)[:axes])
    return triton.InferInput("image", list(elements.shape), "BYTES").set_data_from_numpy(elements)


def assert_close(result: Any, logits: NDArray[np.float32]) -> None:
    answer = result.as_numpy("logits")
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, logits, atol=1e-4)


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("demo")
    assert client.is_model_ready("demo", "1")
    assert not client.is_model_ready("demo", "2")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("a/b c")


def test_server_metadata(client: Any) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "lct-deploy"
    assert metadata["version"] == lct_deploy.__version__
    assert {"binary_tensor_data", "classification", "statistics"} <= set(metadata["extensions"])
    assert not any("memory" in name for name in metadata["extensions"])


@pytest.mark.parametrize("version", ["", "1"])
def test_model_metadata(client: Any, version: str) -> None:
    assert client.get_model_metadata("demo", version) == {
        "name": "demo",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28, 3]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
    }


@pytest.mark.parametrize("version", ["", "1"])
def test_model_config(client: Any, version: str) -> None:
    config = client.get_model_config("demo", version)
    assert config["name"] == "demo"
    assert config["platform"] == "onnxruntime_onnx"
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 64
    (given,), (got,) = config["input"], config["output"]
    assert (given["name"], given["data_type"], given["dims"]) == ("image", "TYPE_UINT8", [28, 28, 3])
    assert (got["name"], got["data_type"], got["dims"]) == ("logits", "TYPE_FP32", [10])


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
def test_unknown_models_and_versions(client: Any, call: str) -> None:
    for model, version in (("other", ""), ("demo", "9")):
        with pytest.raises(InferenceServerException, match="served here") as caught:
            getattr(client, call)(model, version)
        assert caught.value.status() == "404"


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("binary", [True, False])
def test_inference(client: Any, demo: Expected, count: int, binary: bool) -> None:
    images = image_input(demo.images[:count], binary=binary)
    result = client.infer("demo", [images], request_id="ticket 7")
    assert_close(result, demo.logits[:count])
    response = result.get_response()
    assert response["model_name"] == "demo"
    assert response["model_version"] == "1"
    assert response["id"] == "ticket 7"


@pytest.mark.parametrize("binary", [True, False])
def test_outputs_by_name(client: Any, demo: Expected, binary: bool) -> None:
    wanted = triton.InferRequestedOutput("logits", binary_data=binary)
    result = client.infer("demo", [image_input(demo.images)], model_version="1", outputs=[wanted])
    assert_close(result, demo.logits)
    assert ("data" in result.get_output("logits")) == (not binary)
    assert result.as_numpy("other") is None


@pytest.mark.parametrize("axes", [1, 2])
def test_image_files(client: Any, demo: Expected, axes: int) -> None:
    files = file_input(*(encoded(i) for i in range(5)), axes=axes)
    assert_close(client.infer("demo", [files]), demo.logits)


def test_files_of_every_kind(client: Any) -> None:
    files = file_input(encoded(kind="PNG"), encoded(kind="JPEG"), encoded(kind="WEBP"))
    assert client.infer("demo", [files]).as_numpy("logits").argmax(axis=1).tolist() == [9, 9, 9]


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client: Any, demo: Expected, binary: bool) -> None:
    wanted = triton.InferRequestedOutput("logits", binary_data=binary, class_count=3)
    result = client.infer("demo", [image_input(demo.images)], outputs=[wanted])
    assert result.get_output("logits")["datatype"] == "BYTES"
    rows = result.as_numpy("logits")
    assert rows.shape == (5, 3)
    for row, logits in zip(rows, demo.logits, strict=True):
        best = np.argsort(-logits)[:3]
        for entry, index in zip(row, best, strict=True):
            text = entry.decode() if isinstance(entry, bytes) else entry
            value, found, label = text.split(":")
            assert (int(found), label) == (index, demo.labels[index])
            assert float(value) == pytest.approx(float(logits[index]), abs=1e-4)


def test_more_classes_than_there_are(client: Any, demo: Expected) -> None:
    wanted = triton.InferRequestedOutput("logits", class_count=1000)
    result = client.infer("demo", [image_input(demo.images)], outputs=[wanted])
    assert result.as_numpy("logits").shape == (5, 10)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_compression(
    client: Any, demo: Expected, request_coding: str | None, response_coding: str | None
) -> None:
    result = client.infer(
        "demo",
        [image_input(demo.images)],
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    assert_close(result, demo.logits)


def test_priority_timeout_and_parameters_of_ones_own(client: Any, demo: Expected) -> None:
    result = client.infer(
        "demo",
        [image_input(demo.images)],
        priority=2,
        timeout=10_000_000,
        parameters={"mine": "x", "number": 3, "yes": True},
        sequence_id=5,
    )
    assert_close(result, demo.logits)


def test_a_timeout_that_cannot_be_met(client: Any, demo: Expected) -> None:
    with pytest.raises(InferenceServerException, match="deadline") as caught:
        client.infer("demo", [image_input(demo.images)], timeout=1)
    assert caught.value.status() == "504"


def test_statistics(client: Any, demo: Expected) -> None:
    def now(*arguments: str) -> dict[str, Any]:
        (model,) = client.get_inference_statistics(*arguments)["model_stats"]
        return model

    before = now("demo")
    client.infer("demo", [image_input(demo.images)])
    after = now("demo", "1")
    assert (after["name"], after["version"]) == ("demo", "1")
    assert after["inference_count"] == before["inference_count"] + 5
    assert after["execution_count"] > before["execution_count"]
    assert after["last_inference"] >= before["last_inference"]
    stages = after["inference_stats"]
    assert set(stages) == {"success", "fail", "queue", *COMPUTE, "cache_hit", "cache_miss"}
    assert stages["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
    assert stages["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    sizes = {batch["batch_size"]: batch for batch in after["batch_stats"]}
    assert sum(b["compute_infer"]["count"] for b in sizes.values()) == after["execution_count"]
    assert client.get_inference_statistics()["model_stats"] == [after]


def test_repository_index(client: Any) -> None:
    assert client.get_model_repository_index() == [{"name": "demo", "version": "1", "state": "READY"}]


def test_errors_say_what_is_wrong(client: Any, demo: Expected) -> None:
    for options, text in (
        ({"model_name": "other"}, "no model 'other'"),
        ({"model_version": "9"}, "no version '9'"),
        ({"outputs": [triton.InferRequestedOutput("probabilities")]}, 'no output "probabilities"'),
        ({"inputs": [image_input(demo.images[:, :10])]}, "[-1, 28, 28, 3]"),
        ({"inputs": [image_input(demo.images)] * 2}, "twice"),
        ({"inputs": [file_input(encoded(), b"no image")]}, "image 1: not an image"),
    ):
        chosen = {"model_name": "demo", "inputs": [image_input(demo.images)], **options}
        with pytest.raises(InferenceServerException) as caught:
            client.infer(**chosen)
        assert text in (caught.value.message() or "")


@pytest.mark.parametrize(
    "call", ["get_trace_settings", "get_log_settings", "get_system_shared_memory_status"]
)
def test_extensions_that_are_not_there(client: Any, call: str) -> None:
    with pytest.raises(InferenceServerException, match="Not Found"):
        getattr(client, call)()


def test_shared_memory_is_refused(client: Any) -> None:
    tensor = triton.InferInput("image", [1, 28, 28, 3], "UINT8")
    tensor.set_shared_memory("region", 28 * 28 * 3)
    with pytest.raises(InferenceServerException, match="shared memory is not offered"):
        client.infer("demo", [tensor])


def test_many_requests_at_once(host: str, demo: Expected) -> None:
    async def run() -> list[Any]:
        async with triton_aio.InferenceServerClient(host) as client:
            calls = [
                client.infer("demo", [image_input(demo.images[i % 5][None])], request_id=f"r{i}")
                for i in range(40)
            ]
            return await asyncio.gather(*calls)

    for i, result in enumerate(asyncio.run(run())):
        assert result.get_response()["id"] == f"r{i}"
        assert_close(result, demo.logits[i % 5][None])


def test_the_synchronous_clients_own_concurrency(host: str, demo: Expected) -> None:
    with triton.InferenceServerClient(host, concurrency=4) as client:
        pending = [client.async_infer("demo", [image_input(demo.images)]) for _ in range(8)]
        for one in pending:
            assert_close(one.get_result(), demo.logits)
