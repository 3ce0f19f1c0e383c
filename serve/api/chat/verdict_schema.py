"""Whether a client's JSON schema is one that every verdict fits, as JSON of `Verdict.to_json`.

The schema of a structured answer may leave parts out, forbid others, and use `$ref` and `anyOf`
as pydantic writes them. It may not narrow a part (a pattern, a smaller enum, a minimum), because
the model's answer is not made to fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import TypeAdapter

from curt.law.verdict import TermKind, Verdict

KINDS = list(get_args(TermKind))
_DERIVED = TypeAdapter(Verdict).json_schema()
VERDICT_SCHEMA: dict[str, Any] = {
    **_DERIVED,
    "properties": {
        **_DERIVED["properties"],
        "term": _DERIVED["$defs"]["Term"],
        "fine_yuan": {"type": ["integer", "null"]},  # null: nothing is known of a fine
    },
}
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "$schema", "$id"})
_CHECKED = frozenset(
    {"type", "properties", "required", "additionalProperties", "items", "enum", "$ref", "anyOf",
     "$defs", "definitions"}
)  # fmt: skip
MAX_DEPTH = 12


class SchemaError(ValueError):
    """A schema that verdicts don't fit; the message says where and holds none of its text."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise SchemaError unless every verdict, cut to the parts it names, fits the schema.

    A null fine is left aside here: `project` looks at it.
    """
    _check(schema, VERDICT_SCHEMA, schema, "schema", 0)


def project(value: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a verdict's JSON that a checked schema has room for.

    Raises SchemaError when it demands a fine and none is known.
    """
    return _cut(value, schema, schema)


def _check(
    given: Any, ours: Mapping[str, Any], root: Mapping[str, Any], place: str, depth: int
) -> None:
    if depth > MAX_DEPTH:
        raise SchemaError(f"{place}: nested too deep")
    if given is True:
        return
    if not isinstance(given, Mapping):
        raise SchemaError(f"{place}: not a schema that a verdict fits")
    if "$ref" in given:
        _check(_resolve(given["$ref"], root, place), ours, root, place, depth + 1)
        return
    if given.keys() - _ANNOTATIONS - _CHECKED:
        raise SchemaError(
            f"{place}: use only type, properties, required, additionalProperties, items, enum, "
            "anyOf and $ref"
        )
    if "anyOf" in given:
        _check_choice(given["anyOf"], ours, root, place, depth)
        return
    kinds = _kinds(ours)[:1]  # null is looked at when there is one
    allowed = _kinds(given) or kinds
    if not (kinds[0] in allowed or (kinds[0] == "integer" and "number" in allowed)):
        raise SchemaError(f"{place}: a verdict has {kinds[0]} here")
    if "enum" in given and not (
        isinstance(given["enum"], list) and "enum" in ours and set(ours["enum"]) <= _texts(given)
    ):
        raise SchemaError(f"{place}: an enum must hold every kind of penalty: {', '.join(KINDS)}")
    if kinds[0] == "object":
        _check_object(given, ours, root, place, depth)
    elif kinds[0] == "array" and "items" in given:
        _check(given["items"], ours["items"], root, f"{place}.items", depth + 1)


def _check_choice(
    branches: Any, ours: Mapping[str, Any], root: Mapping[str, Any], place: str, depth: int
) -> None:
    if not isinstance(branches, list) or not 0 < len(branches) <= 10:
        raise SchemaError(f"{place}: anyOf needs one to ten branches")
    if len([branch for branch in branches if _is_null(branch)]) + 1 != len(branches):
        raise SchemaError(f"{place}: of anyOf, one branch beside null")
    _check(_choose(branches), ours, root, place, depth + 1)


def _check_object(
    given: Mapping[str, Any], ours: Mapping[str, Any], root: Mapping[str, Any], place: str,
    depth: int,
) -> None:  # fmt: skip
    parts, required = given.get("properties", {}), given.get("required", [])
    if not isinstance(parts, Mapping) or not isinstance(required, list):
        raise SchemaError(f"{place}: properties is an object and required a list")
    known = ours["properties"]
    names = ", ".join(known)
    if not parts.keys() <= known.keys() or not set(map(str, required)) <= known.keys():
        raise SchemaError(f"{place}: a verdict has only {names}")
    if given.get("additionalProperties", True) not in (True, False):
        raise SchemaError(f"{place}: additionalProperties is true or false")
    closed = given.get("additionalProperties") is False
    if closed and not set(map(str, required)) <= parts.keys():
        raise SchemaError(f"{place}: required names what properties lacks")
    for name, part in parts.items():
        _check(part, known[name], root, f"{place}.{name}", depth + 1)


def _cut(value: dict[str, Any], schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    schema = _settle(schema, root)
    parts = schema.get("properties") if isinstance(schema, Mapping) else None
    if not parts:
        return value
    kept: dict[str, Any] = {}
    for name, part in parts.items():
        if isinstance(value[name], dict):
            kept[name] = _cut(value[name], part, root)
        elif value[name] is not None or _takes_null(part, root):
            kept[name] = value[name]
        elif name in schema.get("required", []):
            raise SchemaError(f"nothing is known of {name}, and the schema demands it")
    return kept


def _settle(schema: Any, root: Mapping[str, Any]) -> Any:
    for _ in range(MAX_DEPTH):
        if isinstance(schema, Mapping) and "$ref" in schema:
            schema = _resolve(schema["$ref"], root, "schema")
        elif isinstance(schema, Mapping) and "anyOf" in schema:
            schema = _choose(schema["anyOf"])
    return schema


def _takes_null(schema: Any, root: Mapping[str, Any]) -> bool:
    if isinstance(schema, Mapping) and "anyOf" in schema:
        return any(_is_null(branch) for branch in schema["anyOf"])
    settled = _settle(schema, root)
    return settled is True or not _kinds(settled) or "null" in _kinds(settled)


def _resolve(reference: Any, root: Mapping[str, Any], place: str) -> Any:
    for home in ("$defs", "definitions"):
        prefix = f"#/{home}/"
        if isinstance(reference, str) and reference.startswith(prefix):
            found = root.get(home)
            if isinstance(found, Mapping) and reference.removeprefix(prefix) in found:
                return found[reference.removeprefix(prefix)]
    raise SchemaError(f"{place}: $ref must name an entry of $defs")


def _choose(branches: list[Any]) -> Any:
    return next((branch for branch in branches if not _is_null(branch)), True)


def _is_null(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "null"


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds or ()]


def _texts(schema: Mapping[str, Any]) -> set[str]:
    return {value for value in schema["enum"] if isinstance(value, str)}
