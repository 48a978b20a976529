"""JSON Schemas, shortened to what a person reads: `Booking{room:int, guest:str, nights:int=1}`."""

from typing import Any

import msgspec

_NAMES = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "null": "None"}
_FORMATS = {"date-time": "datetime", "date": "date", "time": "time", "duration": "duration", "uuid": "uuid"}
_REF = "#/$defs/"


class _Schema(msgspec.Struct):
    """The part of JSON Schema that msgspec writes for Python types."""

    type: str = ""
    title: str = ""
    format: str = ""
    ref: str = msgspec.field(name="$ref", default="")
    defs: dict[str, "_Schema"] = msgspec.field(name="$defs", default_factory=dict[str, "_Schema"])
    properties: dict[str, "_Schema"] = msgspec.field(default_factory=dict[str, "_Schema"])
    required: list[str] = msgspec.field(default_factory=list[str])
    additional: "bool | _Schema" = msgspec.field(name="additionalProperties", default=True)
    items: "bool | _Schema" = True
    prefix_items: list["_Schema"] = msgspec.field(name="prefixItems", default_factory=list["_Schema"])
    any_of: list["_Schema"] = msgspec.field(name="anyOf", default_factory=list["_Schema"])
    enum: list[Any] = msgspec.field(default_factory=list[Any])
    default: Any = msgspec.UNSET


def shape(schema: str) -> str:
    """A JSON Schema in one line; one that is of another kind than msgspec writes stays as it is.

    A type is spelled out where it first occurs, and is only named from then on.
    """
    try:
        root = msgspec.json.decode(schema, type=_Schema)
        return _shape(root, root.defs, set())
    except (msgspec.DecodeError, KeyError, RecursionError):
        return schema


def _shape(schema: "bool | _Schema", defs: dict[str, _Schema], seen: set[str]) -> str:
    if isinstance(schema, bool):
        return "any"
    if schema.ref:
        name = schema.ref.removeprefix(_REF)
        if name in seen:
            return defs[name].title or name
        seen.add(name)
        return _shape(defs[name], defs, seen)
    if schema.any_of:
        return " | ".join(_shape(each, defs, seen) for each in schema.any_of)
    if schema.enum:
        return " | ".join(_literal(each) for each in schema.enum)
    if schema.type == "array":
        if schema.prefix_items:
            return f"tuple[{', '.join(_shape(each, defs, seen) for each in schema.prefix_items)}]"
        return f"list[{_shape(schema.items, defs, seen)}]"
    if schema.type == "object":
        return _object(schema, defs, seen)
    return _FORMATS.get(schema.format) or _NAMES.get(schema.type, "any")


def _object(schema: _Schema, defs: dict[str, _Schema], seen: set[str]) -> str:
    if not schema.properties and not schema.title:
        return f"dict[str, {_shape(schema.additional, defs, seen)}]"
    fields: list[str] = []
    for name, each in schema.properties.items():
        optional = "?" if name not in schema.required and each.default is msgspec.UNSET else ""
        default = "" if each.default is msgspec.UNSET else f"={_literal(each.default)}"
        fields.append(f"{name}{optional}:{_shape(each, defs, seen)}{default}")
    return f"{schema.title}{{{', '.join(fields)}}}"


def _literal(value: Any) -> str:
    return "None" if value is None else msgspec.json.encode(value).decode()
