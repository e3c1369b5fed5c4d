"""`lct-deploy train`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lct_deploy.commands.options import given
from lct_deploy.commands.shared import command_line, extra, print_wide
from lct_deploy.validation import validate

_HELP = "help"


def _list_recipes(name: str | None) -> str | None:
    """For `--recipe help`: before typer asks for what the other options need."""
    if name != _HELP:
        return name
    from lct_deploy.train.recipes import RECIPES

    table = Table("recipe", "version", "for", "network", "settings")
    for recipe in RECIPES.values():
        c = recipe.config
        rate = f"÷10 every {c.step_epochs}" if c.schedule == "step" else c.schedule
        settings = (
            f"{c.epochs} epochs, {c.batch_size} images a step, {c.image_size} pixels, SGD {c.lr} ({rate}, "
            f"{c.warmup_epochs} of warm-up), momentum {c.momentum}, weight decay {c.weight_decay:g}"
        )
        table.add_row(recipe.name, str(recipe.version), recipe.about, c.arch, settings)
    print_wide(table)
    raise typer.Exit


def train_command(
    data: Annotated[str, typer.Option(help="fashion-mnist, a folder of IDX files, or an ImageFolder tree.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint: .safetensors, .pt or .pth.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            callback=_list_recipes,
            is_eager=True,
            help="Settings under a name, as paper-resnet50; `help` lists them. Other options override it.",
        ),
    ] = None,
    arch: Annotated[str | None, typer.Option(help="See `lct-deploy models`; default: lct_resnet20.")] = None,
    groups: Annotated[int | None, typer.Option(help="Attention groups; default by network.")] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="LCT's normalisation (Table 3).")
    ] = None,
    transform: Annotated[
        bool | None, typer.Option("--transform/--no-transform", help="LCT's w and b (Table 3).")
    ] = None,
    w_init: Annotated[float | None, typer.Option(help="First value of w (Table 5); default: 0.")] = None,
    b_init: Annotated[float | None, typer.Option(help="First value of b (Table 5); default: 1.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; default by data or network.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: 30.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, of all processes together; default: 256.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Default: 0.1.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Default: 0.9.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Default: 1e-4.")] = None,
    schedule: Annotated[str | None, typer.Option(help="step or cosine; default: step.")] = None,
    step_epochs: Annotated[
        int | None, typer.Option(help="Epochs between the ÷10 steps; default: 30.")
    ] = None,
    warmup_epochs: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    ema_decay: Annotated[
        float | None,
        typer.Option(help="Keep a moving average of the weights, as 0.9999; it becomes the checkpoint."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, or bf16 or fp16 for mixed precision; default: fp32.")
    ] = None,
    accumulate: Annotated[
        int, typer.Option(help="Parts in which a process takes its share of a batch, one after another.")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; auto is cuda where there is one.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode files; default: as many as cores.")
    ] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last/--no-channels-last", help="Memory layout.")
    ] = True,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between saved states within an epoch; default: none.")
    ] = None,
    max_unreadable: Annotated[
        int, typer.Option(help="Images that may be left out because they cannot be read.")
    ] = 0,
    tensorboard: Annotated[Path | None, typer.Option(help="Directory for TensorBoard's events.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last saved state.")] = False,
) -> None:
    """Train a network and write its checkpoint with all that export needs to know.

    torchrun runs it on several GPUs or machines: torchrun --nproc-per-node 4 -m lct_deploy train …
    """
    with extra("export"):
        from lct_deploy.train.config import Execution
        from lct_deploy.train.ranks import joined
        from lct_deploy.train.recipes import choose
        from lct_deploy.train.run import TrainRequest, train

    settings = given(
        arch=arch,
        groups=groups,
        normalize=normalize,
        transform=transform,
        w_init=w_init,
        b_init=b_init,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        step_epochs=step_epochs,
        warmup_epochs=warmup_epochs,
        ema_decay=ema_decay,
        seed=seed,
        precision=precision,
    )
    execution = validate(
        Execution,
        device=device,
        workers=workers,
        accumulate=accumulate,
        compile=compile_,
        channels_last=channels_last,
        save_every=save_every,
        max_unreadable=max_unreadable,
        tensorboard=tensorboard,
    )
    with joined(execution.device) as ranks:
        request = TrainRequest(
            data=data,
            chosen=ranks.each(lambda: choose(recipe, **settings)),
            output=output,
            command=command_line(),
            execution=execution,
            resume=resume,
        )
        result = train(request, ranks)
        if ranks.main:
            print(f"{output}: top-1 {result.test_top1:.2f} % after {result.epoch} epochs")
