"""Which of two commits is faster: `python -m benchmarks.compare BASE HEAD`, for maintainers.

Each commit exports and compiles the same checkpoints with its own code, in a worktree of its own, and runs
them with its own code too; all have their turns in the same rounds. Commits from before this harness cannot
be compared with it. Whoever changes a dependency between two commits compares that as well: both run in this
environment.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measure.messages import Subject
from benchmarks.measure.results import Row
from benchmarks.measure.rounds import Load, Plan
from benchmarks.measure.run import run
from benchmarks.peers.prepare import image_folders, make_checkpoint
from benchmarks.serving.command import run_command
from lct_deploy.cores import available_cores
from lct_deploy.errors import LctDeployError, UsageError

ROOT = Path(__file__).parent.parent
TREES = ROOT / "build" / "compare"
ARCHS = ("resnet50", "lct_resnet50")
MOVED = 0.01  # a change of the median that is worth telling, if the quartiles agree that there is one


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A commit in a worktree of its own."""

    commit: str

    @property
    def directory(self) -> Path:
        return TREES / self.commit

    def bundle(self, arch: str, precision: str) -> Path:
        return self.directory / "build" / f"{arch}-{precision}"

    def run(self, *arguments: object) -> None:
        """Python on its own code; raises LctDeployError where it fails."""
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(self.directory)}
        if subprocess.run(command, cwd=self.directory, env=environment, check=False).returncode:  # noqa: S603
            raise LctDeployError(f"{self.commit}: {' '.join(map(str, arguments))} failed; it says why above")


def main(
    base: Annotated[str, typer.Argument(help="A commit.")],
    head: Annotated[str, typer.Argument(help="Another.")] = "HEAD",
    precision: Annotated[str, typer.Option(help="With commas.")] = "fp32,int8",
    batch: Annotated[str, typer.Option(help="With commas.")] = "1,8",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of a turn.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=6, help="At most.")] = 20,
) -> None:
    """Export, compile and run ResNet-50 and LCT-ResNet50 with both, and say what moved beyond the noise."""
    trees = [_check_out(name) for name in (base, head)]
    loads = tuple(Load(batch=int(size), concurrency=1) for size in batch.split(","))
    plan = Plan(loads=loads, seconds=seconds, most=rounds)
    moved = 0
    for wanted in precision.split(","):
        for arch in ARCHS:
            for tree in trees:
                _make(tree, arch, wanted)
            subjects = [
                Subject(bundle=tree.bundle(arch, wanted), project=tree.directory, threads=available_cores())
                for tree in trees
            ]
            for row in run(subjects, plan, base=subjects[0])[1::2]:
                moved += has_moved(row)
                print(verdict(row))
    print(f"{moved} moved by more than {MOVED:.0%} beyond the noise" if moved else "nothing moved")


def verdict(row: Row) -> str:
    """A line on HEAD's row."""
    about = f"{row.model}, batch {row.batch}"
    if row.ratio is None:
        return f"{about}: {row.error or 'the base failed'}"
    ratio = row.ratio
    how = ("slower" if ratio.median > 1 else "faster") if has_moved(row) else "the same"
    return f"{about}: {ratio.median:.3f} [{ratio.first_quartile:.3f}, {ratio.third_quartile:.3f}], {how}"


def has_moved(row: Row) -> bool:
    """Whether three quarters of the rounds say so, and by enough."""
    ratio = row.ratio
    if ratio is None:
        return False
    agreed = ratio.first_quartile > 1 or ratio.third_quartile < 1
    return agreed and abs(ratio.median - 1) > MOVED


def _check_out(name: str) -> Tree:
    """Raises UsageError for what is no commit, or one without this harness."""
    found = _git("rev-parse", "--verify", "--short=12", f"{name}^{{commit}}")
    if found is None:
        raise UsageError(f"{name!r} is not a commit")
    tree = Tree(commit=found)
    if not tree.directory.is_dir():
        TREES.mkdir(parents=True, exist_ok=True)
        _git("worktree", "prune")
        if _git("worktree", "add", "--detach", str(tree.directory), found) is None:
            raise LctDeployError(f"git cannot check {name} out in {tree.directory}")
    if not (tree.directory / "benchmarks" / "measure" / "worker.py").is_file():
        raise UsageError(f"{name} ({found}) is older than this harness")
    tree.run("setup.py", "--quiet", "build_ext", "--inplace")
    tree.run("-m", "lct_deploy.kernels.cpu")  # says what came of that
    return tree


def _make(tree: Tree, arch: str, precision: str) -> None:
    bundle = tree.bundle(arch, precision)
    if bundle.is_dir():
        return
    unfinished = bundle.with_name(f"{bundle.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(exist_ok=True)
    images, calibration = image_folders()
    options: Sequence[object] = ("--precision", "int8", "--calib-data", calibration)
    tree.run(
        *("-m", "lct_deploy", "export", make_checkpoint(arch), "-o", unfinished, "--images", images),
        *(options if precision == "int8" else ()),
    )
    compiling = ("compile", unfinished, "--runtime", "onnxruntime", "--batch", "1,8", "--images", images)
    tree.run("-m", "lct_deploy", *compiling)
    unfinished.rename(bundle)


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    run_command(main)
