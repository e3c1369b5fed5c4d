"""`lct-deploy inspect`."""

from pathlib import Path

from lct_deploy.bundle import open_any_bundle
from lct_deploy.commands.options import JsonOption
from lct_deploy.report import describe_bundle


def inspect_command(bundle: Path, json: JsonOption = False) -> None:
    """Show a bundle's manifest, fusion certificate and parity, after checking its files."""
    manifest = open_any_bundle(bundle).manifest
    print(manifest.model_dump_json(indent=2) if json else describe_bundle(manifest))
