"""The JSON Schema of a profile, for editors."""

from __future__ import annotations

import datetime
import inspect
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from hostbackup.profile.describe import descriptions
from hostbackup.profile.root import Profile
from hostbackup.profile.shape import Key, NotEmpty, OneOf, Range, Schema, Section, marks
from hostbackup.secrets import SecretSource

_COMPUTED = ("Profile", "Web", "Local", "BucketCopy", "PathCopy")  # sections whose name has a default
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    Path: {"type": "string", "format": "path"},
}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a profile. Keys that have a computed default are optional in it; there is no null, as TOML has none."""
    sections: dict[str, dict[str, Any]] = {}
    _section(Profile, sections)
    told = sections.pop("Profile")
    secret = {"title": "Secret", "description": "Where a secret comes from, or the secret itself.", **SecretSource.json_schema()}
    defs = {**dict(sorted(sections.items())), "Secret": secret}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": defs, **told, "title": "hostbackup profile"}


def _section(section: type[Section], told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    name = section.__name__
    if name not in told:
        told[name] = {}
        texts = descriptions(section)
        keys = section.keys().values()
        required = [key.called for key in keys if key.required and not (key.name == "name" and name in _COMPUTED)]
        told[name] = {
            "title": name,
            "description": inspect.getdoc(section) or "",
            "type": "object",
            "properties": {key.called: _key(key, texts.get(key.name, ""), told) for key in keys},
            **({"required": required} if required else {}),
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{name}"}


def _key(key: Key, text: str, told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    default = list(key.default) if isinstance(key.default, tuple) else key.default
    known = {"default": default} if isinstance(default, str | int | float | list) else {}
    about = {"title": key.called.replace("_", " ").title()} | ({"description": text} if text else {})
    return {**about, **_kind(key.annotation, told), **known}


def _kind(annotation: Any, told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _marked(_kind(inner[0], told), marks(annotation))
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(one, told) for one in inner if one is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is Literal:
        return {"type": "string", "enum": list(inner)}
    if origin is tuple:
        return {"type": "array", "items": _kind(inner[0], told)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _kind(inner[1], told)}
    if annotation is SecretSource:
        return {"$ref": "#/$defs/Secret"}
    return dict(_PLAIN[annotation]) if annotation in _PLAIN else _section(annotation, told)


def _marked(kind: dict[str, Any], found: tuple[Any, ...]) -> dict[str, Any]:
    for mark in found:
        if isinstance(mark, Schema):
            kind = dict(mark.schema)
        elif isinstance(mark, Range):
            bounds = {"minimum": mark.least, "exclusiveMinimum": mark.above, "maximum": mark.most}
            kind |= {name: bound for name, bound in bounds.items() if bound is not None}
        elif isinstance(mark, NotEmpty):
            kind["minItems"] = 1
        elif isinstance(mark, OneOf):
            kind = {"oneOf": kind["anyOf"]}
    return kind
