"""`lct-deploy train`."""

from pathlib import Path
from typing import Annotated

import typer

from lct_deploy.commands.shared import extra
from lct_deploy.validation import validate


def train_command(
    data: Annotated[str, typer.Option(help="fashion-mnist, a folder of IDX files, or an ImageFolder tree.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint: .safetensors, .pt or .pth.")],
    arch: Annotated[str, typer.Option(help="See `lct-deploy models`.")] = "lct_resnet20",
    groups: Annotated[int | None, typer.Option(help="Attention groups; default by network.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; default by data or network.")] = None,
    epochs: int = 30,
    batch_size: int = 256,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: Annotated[str, typer.Option(help="step or cosine.")] = "step",
    step_epochs: Annotated[int, typer.Option(help="Epochs between the ÷10 steps.")] = 30,
    warmup_epochs: int = 0,
    seed: int = 0,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 for mixed precision.")] = "fp32",
    resume: Annotated[bool, typer.Option(help="Go on from the last finished epoch.")] = False,
) -> None:
    """Train a network and write its checkpoint with all that export needs to know."""
    with extra("export"):
        from lct_deploy.train.config import TrainConfig
        from lct_deploy.train.run import TrainRequest, train

    config = validate(
        TrainConfig,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        step_epochs=step_epochs,
        warmup_epochs=warmup_epochs,
        seed=seed,
        precision=precision,
    )
    request = TrainRequest(data=data, arch=arch, groups=groups, image_size=image_size)
    result = train(request, config, output, resume=resume)
    print(f"{output}: top-1 {result.test_top1:.2f} % after {result.epoch} epochs")
