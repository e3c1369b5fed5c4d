"""A checkpoint as what is evaluated, on PyTorch."""

from pathlib import Path

from lct_deploy.checkpoint import LoadedCheckpoint
from lct_deploy.evaluation.subject import Subject
from lct_deploy.runtime.base import RuntimeOptions
from lct_deploy.runtime.torch import TorchRuntime


def checkpoint_subject(path: Path, loaded: LoadedCheckpoint, options: RuntimeOptions) -> Subject:
    """The network of a checkpoint, called after its file."""
    return Subject(
        name=path.stem,
        runtime=TorchRuntime(loaded, options),
        preprocessing=loaded.preprocessing,
        labels=loaded.labels,
    )


def assumptions(loaded: LoadedCheckpoint) -> tuple[str, ...]:
    """What the file does not say and is taken for granted, in sentences for the user."""
    if loaded.metadata is not None:
        return loaded.notes
    p = loaded.preprocessing
    return (
        *loaded.notes,
        f"the checkpoint does not say its preprocessing: assuming resize {p.resize}, crop {p.crop}, "
        f"{p.interpolation}, mean {p.mean}, std {p.std}",
        "what is assumed can be set where it is exported: lct-deploy export --help",
    )
