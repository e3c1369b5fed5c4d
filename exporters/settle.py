"""Preprocessing and labels of a bundle: from the checkpoint's metadata, flags, then defaults.

What changes the function that was trained (mean, std, interpolation) may not contradict the
metadata; sizes and label names may be chosen anew, and every choice or assumption is noted.
"""

from collections.abc import Mapping
from pathlib import Path

from exporters.options import ExportOptions
from lct_deploy.errors import CheckpointError, UsageError
from lct_deploy.labels import read_labels
from lct_deploy.preprocessing import Preprocessing, Rgb, evaluation_preprocessing
from lct_deploy.validation import validate


def settle_preprocessing(
    own: Preprocessing | None, image_size: int, options: ExportOptions
) -> tuple[Preprocessing, list[str]]:
    """The preprocessing and the notes on it, from the source's `own` or the default for `image_size`.

    Raises UsageError for flags that exclude each other, CheckpointError for one that contradicts `own`.
    """
    if own is not None:
        given = {"mean": options.mean, "std": options.std, "interpolation": options.interpolation}
        _refuse_contradictions(own, given)
    base = own or evaluation_preprocessing(image_size)
    size = _size(options) or base.crop
    resize = options.resize or (base.resize if size == base.crop else _scaled_resize(base, size))
    settled = validate(
        Preprocessing,
        resize=resize,
        crop=size,
        interpolation=options.interpolation or base.interpolation,
        mean=options.mean or base.mean,
        std=options.std or base.std,
    )
    return settled, _notes(own, settled, options)


def settle_normalization(
    own: Preprocessing | None, mean: Rgb | None, std: Rgb | None
) -> tuple[Rgb, Rgb, list[str]]:
    """The mean, the std and the notes on them, for a network that takes images as they are.

    Raises UsageError for a std that is not positive, CheckpointError for a flag that contradicts `own`.
    """
    if own is not None:
        _refuse_contradictions(own, {"mean": mean, "std": std})
        return own.mean, own.std, []
    settled = validate(Preprocessing, **{k: v for k, v in (("mean", mean), ("std", std)) if v is not None})
    assumed = [
        f"{name} {getattr(settled, name)}" for name, flag in (("mean", mean), ("std", std)) if flag is None
    ]
    notes = [f"the source does not say its preprocessing: assuming {', '.join(assumed)}"] if assumed else []
    return settled.mean, settled.std, notes


def settle_labels(
    own: tuple[str, ...] | None, classes: int, file: Path | None
) -> tuple[tuple[str, ...], list[str]]:
    """One label per class and the notes on it; raises DataError for a file of another length."""
    if file is None:
        if own is not None:
            return own, []
        return tuple(map(str, range(classes))), ["the source has no labels: classes are numbered"]
    labels = read_labels(file, classes)
    notes = [f"labels of the source are replaced by {file}"] if own and own != labels else []
    return labels, notes


def _size(options: ExportOptions) -> int | None:
    given = {size for size in (options.image_size, options.crop) if size is not None}
    if len(given) > 1:
        raise UsageError(
            f"--image-size {options.image_size} and --crop {options.crop} differ; "
            "the crop is what the network sees"
        )
    return given.pop() if given else None


def _scaled_resize(base: Preprocessing, size: int) -> int:
    """The same share of the image as before, at another size."""
    return max(size, round(size * base.resize / base.crop))


def _refuse_contradictions(own: Preprocessing, given: Mapping[str, object]) -> None:
    for name, flag in given.items():
        trained = getattr(own, name)
        if flag is not None and flag != trained:
            raise CheckpointError(
                f"--{name} {flag} contradicts the source's metadata, which says {trained}",
                hint=f"drop --{name}",
            )


def _notes(own: Preprocessing | None, settled: Preprocessing, options: ExportOptions) -> list[str]:
    if own is not None:
        same = (own.resize, own.crop) == (settled.resize, settled.crop)
        return [] if same else [f"resize {own.resize} and crop {own.crop} of the source are replaced by "
                                f"resize {settled.resize} and crop {settled.crop}"]  # fmt: skip
    assumed = [
        f"{name} {value}"
        for name, value in settled
        if getattr(options, name) is None and not (name == "crop" and options.image_size)
    ]
    return [f"the source does not say its preprocessing: assuming {', '.join(assumed)}"] if assumed else []
