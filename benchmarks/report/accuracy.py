"""What a precision costs in accuracy, from benchmarks.accuracy, and how the checkpoints were trained."""

from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Source
from benchmarks.report.tables import table

LIMIT = 0.5  # points of top-1 that a precision may cost a checkpoint


def over_limit(row: dict[str, str]) -> bool:
    """Whether a graph of low precision costs too much."""
    return float(row["drop"]) > LIMIT


def _show(source: Source, _: Results) -> Shown:
    header = (
        "",
        "pixels",
        "precision",
        "graph for",
        "drop, points",
        "same class as fp32, %",
        "top-1, %",
        "images",
    )
    lines = [
        [
            row["checkpoint"],
            row["size"],
            row["precision"],
            row["target"],
            f"**{float(row['drop']):+.2f}**" + (" over the limit" if over_limit(row) else ""),
            f"{float(row['agreement']):.2f}",
            f"{float(row['top1']):.2f}",
            row["images"],
        ]
        for row in source.rows
    ]
    return Shown(text=table(header, lines))


def _show_training(source: Source, _: Results) -> Shown:
    header = ("epoch", "loss", "top-1 on the test split, %", "seconds")
    lines = [
        [row["epoch"], f"{float(row['loss']):.3f}", row["test_top1"], f"{float(row['seconds']):.0f}"]
        for row in source.rows
    ]
    return Shown(text=table(header, lines))


ACCURACY = Section(
    kind="accuracy",
    title="What a precision costs in accuracy",
    command="python -m benchmarks.accuracy CHECKPOINT... --data fashion-mnist",
    about="Top-1 of checkpoints on the whole test split of Fashion-MNIST beside the same checkpoint's in "
    "fp32; a negative drop is a gain. Int8 and fp8 are calibrated on the training split. More than "
    f"{LIMIT} points is over the limit.",
    show=_show,
)
TRAINING = Section(
    kind="train",
    title="How those checkpoints were trained",
    command="lct-deploy train --data fashion-mnist --arch lct_resnet50 --image-size 64 --epochs 3 "
    "--batch-size 128 --lr 0.02 --schedule cosine --precision bf16 -o lct_resnet50_64.safetensors",
    about="The logs of trainings whose checkpoints do not ship. `lct_resnet50-64` is the one above; it was "
    "halted for twenty minutes of its first epoch. On the other, of `--epochs 2 --lr 0.05`, [the "
    "ranges of int8 were found](decisions/0007-variants.md): a few images have logits of thousands.",
    show=_show_training,
    packages=(),
)
