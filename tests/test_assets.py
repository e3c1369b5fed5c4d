"""The shipped checkpoint and sample are what their cards say."""

import csv
from pathlib import Path

import numpy as np

from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.sample import ASSETS, DEMO_CHECKPOINT, load_sample

CARD = (ASSETS / "MODEL_CARD.md").read_text()


def test_the_checkpoint_says_how_it_was_made_and_the_card_agrees() -> None:
    loaded = load_checkpoint(DEMO_CHECKPOINT)
    assert loaded.notes == ()
    assert loaded.metadata is not None
    training = loaded.metadata.training
    assert training is not None
    assert f"**{training.test_top1:.2f} %**" in CARD
    assert training.test_top1 >= 93.5
    assert training.command == " ".join(CARD.split("```")[1].replace("\\\n", " ").split())
    assert f"{sum(p.numel() for p in loaded.model.parameters()):,} parameters" in CARD
    assert DEMO_CHECKPOINT.stat().st_size < 6_000_000


def test_every_gate_of_the_checkpoint_was_trained() -> None:
    for attention in load_checkpoint(DEMO_CHECKPOINT).model.attention_blocks().values():
        assert dict(attention.named_parameters())["w"].abs().min() > 0


def test_the_log_ends_with_the_accuracy_of_the_checkpoint() -> None:
    log = Path(DEMO_CHECKPOINT).with_suffix(".csv")
    rows = list(csv.DictReader(log.read_text().splitlines()))
    metadata = load_checkpoint(DEMO_CHECKPOINT).metadata
    assert metadata is not None
    assert metadata.training is not None
    assert len(rows) == metadata.training.epochs
    assert float(rows[-1]["test_top1"]) == metadata.training.test_top1


def test_the_sample_is_512_labelled_images_of_every_class() -> None:
    sample = load_sample()
    assert sample.images.shape == (512, 28, 28)
    assert sample.images.dtype == np.uint8
    assert set(sample.labels) == set(range(10))
    assert len(sample.classes) == 10
    assert "Zalando" in (ASSETS / "LICENSE.fashion-mnist").read_text()
