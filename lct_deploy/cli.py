"""The command line's front door: `lct_deploy.commands` has a file for each command."""

import sys

import typer

from lct_deploy.commands.analyze import analyze_command
from lct_deploy.commands.bench import bench_command
from lct_deploy.commands.compile import compile_command
from lct_deploy.commands.demo import demo_command
from lct_deploy.commands.evaluate import evaluate_command
from lct_deploy.commands.export import export_command
from lct_deploy.commands.inspect import inspect_command
from lct_deploy.commands.models import models_command
from lct_deploy.commands.predict import predict_command
from lct_deploy.commands.serve import serve_command
from lct_deploy.commands.train import train_command
from lct_deploy.commands.verify import verify_command
from lct_deploy.errors import LctDeployError

app = typer.Typer(
    name="lct-deploy",
    help="Trained LCT-ResNet checkpoints to production endpoints, proven equal to PyTorch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

# In the order in which `lct-deploy --help` lists them.
app.command("train")(train_command)
app.command("export")(export_command)
app.command("models")(models_command)
app.command("compile")(compile_command)
app.command("verify")(verify_command)
app.command("predict")(predict_command)
app.command("evaluate")(evaluate_command)
app.command("analyze")(analyze_command)
app.command("inspect")(inspect_command)
app.command("serve")(serve_command)
app.command("bench")(bench_command)
app.command("demo")(demo_command)


def main() -> None:
    """Entry point: exit 0 done, 1 failed, 2 wrong use; a user's mistake shows no traceback."""
    try:
        app()
    except LctDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
