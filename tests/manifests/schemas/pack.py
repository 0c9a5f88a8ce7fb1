"""Packs custom resource definitions as this folder holds them: one file a kind,
`GROUP_PLURAL.yaml.gz`.

`python tests/manifests/schemas/pack.py FOLDER` reads `FOLDER/*.yaml`. Kept are the names, the scope
and the schema of the version that is stored. Descriptions are left out: with them the files are
more than twice as large. The same input makes the same bytes.
"""

import gzip
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def packed(definition: dict[str, Any]) -> bytes:
    """Return a definition as one packed file."""
    spec = definition["spec"]
    (stored,) = (version for version in spec["versions"] if version["storage"])
    version = {"name": stored["name"], "schema": _without_descriptions(stored["schema"])}
    kept = {
        "group": spec["group"],
        "names": spec["names"],
        "scope": spec["scope"],
        "version": version,
    }
    return gzip.compress(
        yaml.dump(kept, Dumper=yaml.CSafeDumper).encode(), compresslevel=9, mtime=0
    )


def _without_descriptions(schema: Any) -> Any:
    """Return a schema without the texts that describe its fields; a field that is called
    `description` stays.
    """
    if isinstance(schema, list):
        return [_without_descriptions(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_descriptions(value)
        for key, value in schema.items()
        if key != "description" or not isinstance(value, str)
    }


if __name__ == "__main__":
    for file in sorted(Path(sys.argv[1]).glob("*.yaml")):
        definition = yaml.load(file.read_bytes(), yaml.CSafeLoader)
        name = f"{definition['spec']['group']}_{definition['spec']['names']['plural']}"
        (HERE / f"{name}.yaml.gz").write_bytes(packed(definition))
