"""Named training configurations; a recipe that changes gets a new version, never new numbers.

The paper's, § Implementation details: SGD 0.1 with momentum 0.9 and weight decay 1e-4, a tenth of the
rate every 30 of 100 epochs, 256 images a step (220 for ResNet-101), 224-pixel random-resized crops and
flips, He initialisation, w = 0, b = 1, G = 64. Its baselines are the same with `--arch`.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from lct_deploy.errors import UsageError
from lct_deploy.suggest import did_you_mean
from lct_deploy.train.config import TrainConfig
from lct_deploy.validation import validate


class Recipe(BaseModel):
    """A configuration under a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    about: str
    config: TrainConfig

    @property
    def label(self) -> str:
        return f"{self.name} v{self.version}"


class RecipeUse(BaseModel):
    """Which recipe a checkpoint comes from, and what was set otherwise."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    overrides: dict[str, JsonValue] = {}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A configuration and the recipe that it was made from."""

    config: TrainConfig
    recipe: Recipe | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Settings that are not the recipe's."""
        if self.recipe is None:
            return {}
        theirs = self.recipe.config.model_dump()
        return {name: value for name, value in self.config.model_dump().items() if value != theirs[name]}

    @property
    def use(self) -> RecipeUse | None:
        if self.recipe is None:
            return None
        return RecipeUse(name=self.recipe.name, version=self.recipe.version, overrides=self.overrides)


def _paper(arch: str, batch_size: int) -> TrainConfig:
    """All fields are written out: a new default changes no recipe."""
    return TrainConfig(
        arch=arch,
        groups=64,
        normalize=True,
        transform=True,
        w_init=0.0,
        b_init=1.0,
        image_size=224,
        epochs=100,
        batch_size=batch_size,
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        step_epochs=30,
        warmup_epochs=0,
        ema_decay=None,
        seed=0,
        precision="fp32",
    )


_DEMO = TrainConfig(
    arch="lct_resnet20",
    groups=4,
    normalize=True,
    transform=True,
    w_init=0.0,
    b_init=1.0,
    image_size=28,
    epochs=20,
    batch_size=128,
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
    step_epochs=30,
    warmup_epochs=1,
    ema_decay=None,
    seed=0,
    precision="fp32",
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="paper-resnet50",
            version=1,
            about="ImageNet, Table 1: 77.45 % top-1 with LCT-ResNet50",
            config=_paper("lct_resnet50", 256),
        ),
        Recipe(
            name="paper-resnet101",
            version=1,
            about="ImageNet, Table 1: 78.55 % top-1 with LCT-ResNet101",
            config=_paper("lct_resnet101", 220),
        ),
        Recipe(
            name="demo-resnet20",
            version=1,
            about="Fashion-MNIST: the checkpoint of `lct-deploy demo`",
            config=_DEMO,
        ),
    )
}


def choose(name: str | None, **given: Any) -> Chosen:
    """The recipe called `name`, or the defaults, with the settings that were `given`.

    Raises UsageError for a recipe that does not exist and for a value that no run can have.
    """
    if name is None:
        return Chosen(config=validate(TrainConfig, **given))
    if name not in RECIPES:
        raise UsageError(
            f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}",
            hint="`lct-deploy train --recipe help` lists all recipes",
        )
    recipe = RECIPES[name]
    return Chosen(config=validate(TrainConfig, **{**recipe.config.model_dump(), **given}), recipe=recipe)
