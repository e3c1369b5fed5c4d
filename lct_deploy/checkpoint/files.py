"""Checkpoint files to named tensors and back: `.safetensors`, and `.pt`/`.pth` as weights only.

A pickle may run any code when it is opened. torch's weights-only reader refuses all but tensors
and plain containers, so a file that would need more is refused here and never executed.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lct_deploy.atomic import atomic_file
from lct_deploy.checkpoint.metadata import METADATA_KEY, CheckpointMetadata, parse_metadata
from lct_deploy.errors import CheckpointError

WeightsChoice = Literal["model", "ema"]
SUFFIXES = (".pt", ".pth", ".safetensors")

# Where training scripts put the state dict; the first that is there is taken.
_MODEL_KEYS = ("model", "state_dict", "model_state", "model_state_dict")
_EMA_KEYS = ("ema", "model_ema", "state_dict_ema", "ema_state_dict")
_NESTING = 2  # {"ema": {"state_dict": {…}}}
# What the sentence that names the cause contains, in messages of torch that also advise less safety.
_CAUSES = ("unsupported", "trying to")


@dataclass(frozen=True, kw_only=True)
class RawCheckpoint:
    """Tensors under the names that the file uses, with our metadata if we wrote it."""

    tensors: dict[str, Tensor]
    metadata: CheckpointMetadata | None
    weights: WeightsChoice


def read_checkpoint(path: Path, weights: WeightsChoice | None = None) -> RawCheckpoint:
    """Read a checkpoint on the CPU without executing anything in it.

    `weights` chooses where a file holds both; raises CheckpointError if it is needed and missing,
    and for a file that is damaged, of another format, or a pickle that holds code.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory, not a checkpoint file")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: not a checkpoint by its name", hint=f"expected {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty (0 bytes)")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
    raw = read(path, weights)
    odd = [key for key, tensor in raw.tensors.items() if tensor.is_meta or tensor.layout != torch.strided]
    if odd:
        raise CheckpointError(f"{path}: sparse or without values: {', '.join(odd[:5])} ({len(odd)} tensors)")
    return raw


def write_checkpoint(path: Path, state: Mapping[str, Tensor], metadata: CheckpointMetadata) -> None:
    """Write a state dict and its metadata atomically, in the format that the suffix names."""
    text = metadata.model_dump_json()
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic_file(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(tensors, temporary, metadata={METADATA_KEY: text, "format": "pt"})
        else:
            torch.save({"state_dict": tensors, METADATA_KEY: text}, temporary)


def _read_safetensors(path: Path, weights: WeightsChoice | None) -> RawCheckpoint:
    if weights == "ema":
        raise CheckpointError(
            f"{path}: a safetensors file holds one set of weights", hint="drop --weights ema"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            texts = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    metadata = parse_metadata(texts[METADATA_KEY], str(path)) if METADATA_KEY in texts else None
    return RawCheckpoint(tensors=tensors, metadata=metadata, weights="model")


def _read_pickle(path: Path, weights: WeightsChoice | None) -> RawCheckpoint:
    content = _load_weights_only(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not a state dict",
            hint="save it as torch.save(model.state_dict(), PATH)",
        )
    content = cast("Mapping[str, Any]", content)
    metadata = parse_metadata(content[METADATA_KEY], str(path)) if METADATA_KEY in content else None
    tensors, choice = _choose(content, weights, path)
    return RawCheckpoint(tensors=tensors, metadata=metadata, weights=choice)


def _load_weights_only(path: Path) -> Any:
    try:
        # Only the zip format can be mapped; the legacy one is read whole.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickles, which the reader then takes or refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged bytes raise whatever the reader stumbles on
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "global" in text.lower():
        return CheckpointError(
            f"{path}: refused, because reading it would run pickled code: {_telling(text)}",
            hint="where you trust it, save its weights alone: torch.save(model.state_dict(), PATH)",
        )
    if "TorchScript" in text:
        return CheckpointError(
            f"{path}: refused, because it is a TorchScript program, not a state dict",
            hint="save its weights alone: torch.save(torch.jit.load(PATH).state_dict(), OTHER)",
        )
    return CheckpointError(
        f"{path}: damaged, cut short, or not written by torch.save ({_telling(text) or type(error).__name__})"
    )


def _telling(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if any(cause in line.lower() for cause in _CAUSES)]
    return (causes or lines or [""])[0].split(". ")[0][:300]


def _choose(
    content: Mapping[str, Any], weights: WeightsChoice | None, path: Path
) -> tuple[dict[str, Tensor], WeightsChoice]:
    """The state dict asked for, or the only one there is."""
    model = _first_state_dict(content, _MODEL_KEYS)
    ema = _first_state_dict(content, _EMA_KEYS)
    if model is not None and ema is not None and weights is None:
        raise CheckpointError(
            f"{path}: holds both model and EMA weights", hint="choose with --weights model or --weights ema"
        )
    if weights == "ema" or (weights is None and ema is not None):
        if ema is None:
            raise CheckpointError(f"{path}: holds no EMA weights", hint="drop --weights ema")
        return ema, "ema"
    tensors = model if model is not None else _tensors(content)
    if not tensors:
        raise CheckpointError(
            f"{path}: no weights found; its top level holds {sorted(map(str, content))[:8]}"
        )
    return tensors, "model"


def _first_state_dict(
    content: Mapping[str, Any], keys: tuple[str, ...], depth: int = _NESTING
) -> dict[str, Tensor] | None:
    if depth == 0:  # a pickle may contain itself
        return None
    for key in keys:
        value = content.get(key)
        if isinstance(value, Mapping):
            nested = cast("Mapping[str, Any]", value)
            inner = _first_state_dict(nested, _MODEL_KEYS, depth - 1) or _tensors(nested)
            if inner:
                return inner
    return None


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
