"""What an API server checks of a custom object, read from the packed definitions in `schemas/`.

Structure, as strict JSON schema: unknown fields are errors. Lists whose items have keys or are a
set: nothing twice. And rules in CEL (`x-kubernetes-validations`), evaluated by `cel-python`; those
that compare with an older object (`oldSelf`) hold for updates, so they are left out. Defaults are
filled in first, as the server does.
"""

import copy
import gzip
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import yaml
from jsonschema.protocols import Validator

SCHEMAS = Path(__file__).parent / "schemas"

NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
LABEL = r"^([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]?$"
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 253, "pattern": NAME},
        "namespace": {"type": "string", "maxLength": 63, "pattern": NAME},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "pattern": LABEL}},
        "annotations": TEXTS,
    },
    "required": ["name"],
    "additionalProperties": False,
}
"""What we write of an object's own metadata; a definition does not say.

Source: Kubernetes, "Object Names and IDs", "Labels".
"""

RESERVED = {
    "namespace",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
}
RESERVED |= {"return", "var", "void", "while", "true", "false", "null"}
"""Names of fields that CEL wants as `__namespace__`.

Source: Kubernetes, "CustomResourceDefinitions", "Validation rules".
"""


def is_packed(kind: str) -> bool:
    """Return whether there is a definition of a kind, such as `ray.io_rayjobs`."""
    return (SCHEMAS / f"{kind}.yaml.gz").exists()


def problems(manifest: dict[str, Any], kind: str) -> list[str]:
    """Return what a manifest has wrong."""
    whole = defaulted(schema_of(kind), manifest)
    return [
        f"{'/'.join(map(str, error.path))}: {error.message}"
        for error in _checker(kind).iter_errors(whole)
    ]


def defaulted(schema: dict[str, Any], value: Any) -> Any:
    """Return a copy of a value with the defaults of its schema filled in."""
    if isinstance(value, list) and "items" in schema:
        return [defaulted(schema["items"], one) for one in value]
    if not isinstance(value, dict):
        return value
    fields = schema.get("properties", {})
    others = schema.get("additionalProperties")
    missing = {
        name: copy.deepcopy(field["default"])
        for name, field in fields.items()
        if name not in value and "default" in field
    }
    return {
        name: defaulted(fields.get(name, others if isinstance(others, dict) else {}), one)
        for name, one in (value | missing).items()
    }


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """Return the schema of a kind as its definition has it, with what metadata, apiVersion and kind
    may be. Not to be changed.
    """
    definition = yaml.load(
        gzip.decompress((SCHEMAS / f"{kind}.yaml.gz").read_bytes()), yaml.CSafeLoader
    )
    schema: dict[str, Any] = definition["version"]["schema"]["openAPIV3Schema"]
    schema["properties"] |= {
        "apiVersion": {
            "type": "string",
            "enum": [f"{definition['group']}/{definition['version']['name']}"],
        },
        "kind": {"type": "string", "enum": [definition["names"]["kind"]]},
        "metadata": METADATA,
    }
    schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})
    return schema


@cache
def _checker(kind: str) -> Validator:
    more = {
        "x-kubernetes-list-map-keys": _no_item_twice,
        "x-kubernetes-list-type": _nothing_twice,
        "x-kubernetes-validations": _rules_hold,
    }
    checker = jsonschema.validators.extend(jsonschema.Draft202012Validator, more)
    return checker(_strict(schema_of(kind)))


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a structural schema as JSON schema in which unknown fields are errors."""
    made = {key: value for key, value in schema.items() if key not in ("default", "nullable")}
    if schema.get("x-kubernetes-int-or-string"):
        return {key: value for key, value in made.items() if key != "anyOf"} | {
            "type": ["integer", "string"]
        }
    if schema.get("nullable") and "type" in schema:
        made["type"] = [schema["type"], "null"]
    if isinstance(schema.get("items"), dict):
        made["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    if "properties" in schema:
        made["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
    return made


def _no_item_twice(
    _: Validator, keys: list[str], items: Any, __: dict[str, Any]
) -> Iterator[jsonschema.ValidationError]:
    seen = set()
    for item in items if isinstance(items, list) else ():
        named = tuple(str(item.get(key)) for key in keys)
        if named in seen:
            yield jsonschema.ValidationError(f"{' '.join(named)} is there twice")
        seen.add(named)


def _nothing_twice(
    _: Validator, kind: str, items: Any, __: dict[str, Any]
) -> Iterator[jsonschema.ValidationError]:
    if (
        kind == "set"
        and isinstance(items, list)
        and len({str(item) for item in items}) < len(items)
    ):
        yield jsonschema.ValidationError(f"something is twice in {items}")


def _rules_hold(
    _: Validator, rules: list[dict[str, str]], value: Any, schema: dict[str, Any]
) -> Iterator[jsonschema.ValidationError]:
    for rule in rules:
        if re.search(r"\boldSelf\b", rule["rule"]):
            continue
        message = rule.get("message", rule["rule"])
        try:
            if not _program(rule["rule"]).evaluate({"self": _in_cel(schema, value)}):
                yield jsonschema.ValidationError(message)
        except (
            celpy.CELEvalError
        ) as error:  # a server refuses an object whose rule cannot be evaluated
            yield jsonschema.ValidationError(f"{message} ({error})")


@cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _in_cel(schema: dict[str, Any], value: Any) -> Any:
    """Return a value as CEL sees it."""
    return celpy.json_to_cel(_escaped(schema, value))


def _escaped(schema: dict[str, Any], value: Any) -> Any:
    """Return a value with the names of its fields as CEL wants them; keys of maps stay."""
    if isinstance(value, list):
        return [_escaped(schema.get("items", {}), one) for one in value]
    if not isinstance(value, dict):
        return float(value) if schema.get("type") == "number" and isinstance(value, int) else value
    fields = schema.get("properties", {})
    others = schema.get("additionalProperties")
    made = {}
    for name, one in value.items():
        escaped = f"__{name}__" if name in fields and name in RESERVED else name
        made[escaped] = _escaped(fields.get(name, others if isinstance(others, dict) else {}), one)
    return made
