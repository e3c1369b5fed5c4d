"""Write docs/manifest.schema.json from the manifests' models."""

import json
from pathlib import Path

from pydantic import TypeAdapter

from lct_deploy.manifest import BackboneManifest, Manifest

SCHEMA = Path(__file__).with_name("manifest.schema.json")


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of `manifest.json`: a classifier's or a backbone's."""
    described: TypeAdapter[Manifest | BackboneManifest] = TypeAdapter(Manifest | BackboneManifest)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **described.json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
