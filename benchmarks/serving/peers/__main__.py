"""`python -m benchmarks.serving.peers install|check`."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.serving.command import run_app
from benchmarks.serving.peers.catalogue import PEERS, Peer
from benchmarks.serving.peers.running import Shape, check_answers, expected_answers, running_peer
from benchmarks.serving.photos import photos
from benchmarks.serving.servers import ServerFailedError
from lct_deploy.bundle import open_bundle
from lct_deploy.cores import available_cores
from lct_deploy.errors import LctDeployError, UsageError
from lct_deploy.progress import track

CHECKED = 4  # images

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Names = Annotated[list[str] | None, typer.Argument(help="Peers; default: all.")]


@app.command("install")
def install_command(
    names: Names = None,
    again: Annotated[bool, typer.Option("--again", help="Also those that are there.")] = False,
) -> None:
    """Make an environment for each peer under build/peers, from its pinned requirements."""
    chosen = choose(names)
    failures = {
        peer.name: failure
        for peer in track(chosen, "installing", total=len(chosen))
        if again or not peer.venv.installed
        if (failure := peer.venv.install()) is not None
    }
    for peer in chosen:
        print(f"{peer.version}: {failures.get(peer.name, 'installed')}")
    if failures:
        raise LctDeployError(f"not installed: {', '.join(failures)}")


@app.command("check")
def check_command(bundle: Path, names: Names = None) -> None:
    """Start each peer on a bundle's graph and compare its answers with ours."""
    opened, chosen = open_bundle(bundle), choose(names)
    expected = expected_answers(opened, photos()[:CHECKED])
    shape = Shape(replicas=1, threads=available_cores())
    failures: list[str] = []
    for peer in track(chosen, "checking", total=len(chosen)):
        try:
            with running_peer(peer, opened, shape, photos()) as running:
                check_answers(running.where, expected)
                print(f"{peer.version}: answers as we do, {running.start_seconds:.1f} s after its start")
        except ServerFailedError as error:
            failures.append(peer.name)
            print(f"{peer.version}: {error}")
    if failures:
        raise LctDeployError(f"failed: {', '.join(failures)}")


def choose(names: list[str] | None) -> list[Peer]:
    """Raises UsageError for a name that no peer has."""
    known = {peer.name: peer for peer in PEERS}
    if unknown := [name for name in names or () if name not in known]:
        raise UsageError(f"no peer {', '.join(unknown)}", hint=f"peers are {', '.join(known)}")
    return [known[name] for name in names or known]


if __name__ == "__main__":
    run_app(app)
