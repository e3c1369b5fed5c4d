"""Requests and answers as the documentation shows them; the routes read and write them by themselves."""

from typing import Any, Literal

from pydantic import BaseModel, Field

Parameters = dict[str, str | bool | int | float | None]
_DATA = "flat or nested, in row-major order; absent where the tensor follows the JSON as a blob"


class Failure(BaseModel):
    """The body of every answer that is not 200."""

    error: str


class ServerMetadata(BaseModel):
    """The server and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor of a model; -1 stands for the batch."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model and its tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """The model takes requests."""

    name: str
    ready: Literal[True]


class TensorConfig(BaseModel):
    """A tensor of a model without its batch axis."""

    name: str
    data_type: str
    dims: list[int]
    format: str | None = None


class ModelConfig(BaseModel):
    """A model's configuration."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    dynamic_batching: dict[str, list[int]]
    parameters: dict[str, dict[str, str]]


class InputTensor(BaseModel):
    """The images: pixels as UINT8 [-1, height, width, 3], or JPEG, PNG or WebP files as BYTES [-1]."""

    name: str
    datatype: Literal["UINT8", "BYTES"]
    shape: list[int]
    parameters: Parameters | None = Field(default=None, description="binary_data_size, where a blob follows")
    data: list[Any] | None = Field(default=None, description=f"{_DATA}; a file in base64")


class RequestedOutput(BaseModel):
    """An output and how it is wanted."""

    name: str
    parameters: Parameters | None = Field(default=None, description="binary_data, classification")


class InferenceRequest(BaseModel):
    """What infer takes."""

    id: str | None = Field(default=None, description="comes back with the answer")
    parameters: Parameters | None = Field(
        default=None, description="timeout in microseconds, priority, binary_data_output"
    )
    inputs: list[InputTensor] = Field(min_length=1, max_length=1, description="the model has one")
    outputs: list[RequestedOutput] | None = Field(default=None, max_length=1, description="the model has one")


class OutputTensor(BaseModel):
    """Logits as FP32 [N, classes], or the best classes as BYTES [N, k] of `value:index:label`."""

    name: str
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    parameters: Parameters | None = Field(default=None, description="binary_data_size, where a blob follows")
    data: list[float | str | None] | None = Field(default=None, description=_DATA)


class InferenceResponse(BaseModel):
    """What infer answers."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class DurationStatistics(BaseModel):
    """How often, and how many nanoseconds in all."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """Where the time of requests went."""

    success: DurationStatistics
    fail: DurationStatistics
    queue: DurationStatistics
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics
    cache_hit: DurationStatistics
    cache_miss: DurationStatistics


class BatchStatistics(BaseModel):
    """Where the time of batches of one size went."""

    batch_size: int
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics


class ModelStatistics(BaseModel):
    """What one version of a model has run."""

    name: str
    version: str
    last_inference: int = Field(description="milliseconds since 1970")
    inference_count: int = Field(description="images")
    execution_count: int = Field(description="batches")
    inference_stats: InferenceStatistics
    response_stats: dict[str, Any]
    batch_stats: list[BatchStatistics]
    memory_usage: list[Any]


class StatisticsResponse(BaseModel):
    """What models have run since they were loaded."""

    model_stats: list[ModelStatistics]


class IndexRequest(BaseModel):
    """What the index takes; the body may be empty."""

    ready: bool | None = Field(default=False, description="leave out what is not ready")


class RepositoryRequest(BaseModel):
    """What load and unload take; the body may be empty."""

    parameters: Parameters | None = None


class IndexedModel(BaseModel):
    """A model that is or could be served."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
    reason: str | None = None


class Done(BaseModel):
    """An empty object."""
