"""What our own checkpoints say about themselves beside their weights."""

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from lct_deploy.architecture import ModelConfig, check_config
from lct_deploy.errors import ArchitectureError, CheckpointError
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.train.recipes import RecipeUse

METADATA_KEY = "lct_deploy"
_SCHEMA_VERSION = 1


class TrainingRecord(BaseModel):
    """Where the weights come from; accuracies in percent, None where an older version left it out."""

    model_config = ConfigDict(frozen=True)

    data: str
    command: str
    epochs: int
    test_top1: float
    test_top5: float | None = None
    seconds: float
    recipe: RecipeUse | None = None
    settings: dict[str, JsonValue] | None = Field(default=None, description="of lct_deploy.train.config")
    left_out: int = Field(default=0, description="images that could not be read")


class _Version(BaseModel):
    schema_version: int = Field(default=_SCHEMA_VERSION, ge=1)


class CheckpointMetadata(_Version):
    """Stored as JSON under `lct_deploy` in safetensors metadata or beside the state dict."""

    model_config = ConfigDict(frozen=True)

    model: ModelConfig
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    training: TrainingRecord | None = None


def parse_metadata(text: object, source: str) -> CheckpointMetadata:
    """Raises CheckpointError where the metadata is not what this version writes."""
    if not isinstance(text, str):
        raise CheckpointError(f"{source}: its lct_deploy metadata is a {type(text).__name__}, not JSON text")
    try:
        version = _Version.model_validate_json(text).schema_version
        if version > _SCHEMA_VERSION:
            raise CheckpointError(
                f"{source}: written by a newer lct-deploy (checkpoint schema {version})",
                hint="pip install --upgrade lct-deploy",
            )
        metadata = CheckpointMetadata.model_validate_json(text)
        check_config(metadata.model)
    except (ValidationError, ArchitectureError) as error:
        raise CheckpointError(f"{source}: its lct_deploy metadata is damaged: {_reason(error)}") from error
    if len(metadata.labels) != metadata.model.num_classes:
        raise CheckpointError(
            f"{source}: its lct_deploy metadata names {len(metadata.labels)} labels "
            f"for {metadata.model.num_classes} classes"
        )
    return metadata


def _reason(error: ValidationError | ArchitectureError) -> str:
    if isinstance(error, ArchitectureError):
        return error.message
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in error.errors())
