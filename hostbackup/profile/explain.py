"""What is wrong with a profile, in words: which file, line and key, what was found, what was expected."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from hostbackup.profile.describe import descriptions, models
from hostbackup.profile.sections import COPY_FORMS
from hostbackup.secrets import SecretSource

Key = tuple[str | int, ...]

_KEY = r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'"""
_DOTTED = rf"(?:{_KEY})(?:\s*\.\s*(?:{_KEY}))*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")
_EXPECTED = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "date_type": "a date without quotes, such as 2026-11-25",
    "datetime_type": "a date without quotes, such as 2026-11-25",
    "tuple_type": "a list, [ … ]",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "is_instance_of": "a path in quotes",  # LocalPath: anything but text comes through unconverted
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "a list that is not empty",
}


def positions(text: str) -> dict[Key, int]:
    """Line numbers, from 1, of every section header and key of a TOML text: good enough to point at, made without a second parser."""
    found: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    section: Key = ()
    closing = ""
    for number, line in enumerate(text.splitlines(), 1):
        if closing:
            closing = "" if closing in line else closing
            continue
        if header := _HEADER.match(line):
            section = _resolve(_parts(header[2]), counts)
            if header[1] == "[[":
                counts[section] = counts.get(section, -1) + 1
                section = (*section, counts[section])
            found.setdefault(section, number)
        elif assignment := _ASSIGNMENT.match(line):
            found.setdefault((*section, *_parts(assignment[1])), number)
        closing = next((quotes for quotes in ('"""', "'''") if line.count(quotes) % 2), "")
    return found


def _parts(dotted: str) -> Key:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


def _resolve(header: Key, counts: Mapping[Key, int]) -> Key:
    """A header's keys, with the index of the newest element wherever it goes through an array of tables."""
    resolved: Key = ()
    for position, part in enumerate(header):
        resolved = (*resolved, part)
        if resolved in counts and position < len(header) - 1:
            resolved = (*resolved, counts[resolved])
    return resolved


def line_of(key: Key, lines: Mapping[Key, int]) -> int | None:
    """The line of a key, or of the nearest thing around it."""
    for length in range(len(key), 0, -1):
        if line := lines.get(key[:length]):
            return line
        below = [number for known, number in lines.items() if known[:length] == key[:length]]
        if below:
            return min(below)
    return None


def dotted(key: Key) -> str:
    """How a key is called: `old.imap.account[1].user`, counted from 0 as JSON does."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else ascii(part))
    return text


def clean(location: Key) -> Key:
    """A location without pydantic's own words for the members of a union."""
    kept: list[str | int] = []
    for position, part in enumerate(location):
        of_copy = part in COPY_FORMS and position == 2 and location[0] == "copy"
        of_union = isinstance(part, str) and (part in ("date", "datetime", "str", "int", "bool") or part.startswith(("function-", "constrained-")))
        if not of_copy and not (of_union and position > 0 and position == len(location) - 1):
            kept.append(part)
    return tuple(kept)


def explain(error: ErrorDetails, root: type[BaseModel]) -> tuple[Key, str]:
    """The key an error is about, and the sentence. Nothing of a value is told where the value could be a secret."""
    kind = error["type"]
    key = clean(error["loc"])
    if kind == "extra_forbidden":
        return key, f"unknown key{_meant(key, root)}"
    if kind == "missing":
        return key, f"is missing{_described(key, root)}"
    if kind in ("profile", "secret"):
        return key, error["msg"]
    expected = _EXPECTED[kind].format(**error.get("ctx", {})) if kind in _EXPECTED else _plain(error)
    return key, f"expected {expected}, found {found(error['input'], secret=_is_secret(key, root))}"


def explain_all(errors: list[ErrorDetails], root: type[BaseModel]) -> list[tuple[Key, str]]:
    """Every error once: one a key (a union tells each member's), and none of a list that is only wrong in what it holds."""
    told: dict[Key, str] = {}
    for error in errors:
        key, sentence = explain(error, root)
        if key not in told or error["type"] == "profile":
            told[key] = sentence
    return [
        (key, told[key])
        for key in told
        if not any(len(other) > len(key) and other[: len(key)] == key and isinstance(other[len(key)], int) for other in told)
    ]


def _plain(error: ErrorDetails) -> str:
    text = error["msg"]
    for opening in ("Input should be a valid ", "Input should be ", "Value should be ", "Value should "):
        text = text.removeprefix(opening)
    return text


def found(value: object, *, secret: bool = False) -> str:
    """A value as an error may tell it: short, on one line, and a secret not at all."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a table"}
    if isinstance(value, dict | list | tuple) or secret:
        return names.get(type(value), "something else")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        shown = value if len(value) <= 60 else value[:57] + "…"
        return '"' + "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown) + '"'
    return str(value) if isinstance(value, int | float | date) else names.get(type(value), type(value).__name__)


def fields(model: type[BaseModel]) -> dict[str, Any]:
    """A section's fields by the names a profile uses."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _around(key: Key, root: type[BaseModel]) -> list[type[BaseModel]]:
    """The sections that the last part of `key` stands in."""
    here: list[type[BaseModel]] = [root]
    for part in key[:-1]:
        if isinstance(part, str):
            here = [inner for model in here if part in fields(model) for inner in models(fields(model)[part].annotation)]
    return here


def _is_secret(key: Key, root: type[BaseModel]) -> bool:
    name = key[-1] if key else ""
    return any(name in fields(model) and SecretSource in typing.get_args(fields(model)[str(name)].annotation) for model in _around(key, root))


def _described(key: Key, root: type[BaseModel]) -> str:
    for model in _around(key, root):
        for name, text in descriptions(model).items():
            if (model.model_fields[name].alias or name) == key[-1]:
                return f": {text.split('.')[0].strip()}"
    return ""


def _meant(key: Key, root: type[BaseModel]) -> str:
    name = str(key[-1])
    known = [field for model in _around(key, root) for field in fields(model)]
    if near := difflib.get_close_matches(name, known, 1, 0.6):
        return f"; did you mean {near[0]}?"
    if len(key) > 1 and name in fields(root):
        return f"; {name} belongs at the top of the file, above the first [section]"
    for path, model in _sections(root):
        if name in fields(model):
            return f"; it belongs in {path}"
    return f"; known here: {', '.join(sorted(set(known)))}" if known else ""


def _sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, info in fields(model).items():
        for inner in models(info.annotation):
            inner_path = f"{path}.{name}" if path else name
            yield f"[{inner_path}]", inner
            yield from _sections(inner, inner_path)
