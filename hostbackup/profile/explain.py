"""What is wrong with a profile, in words: which file, line and key, what was found, what was expected."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from datetime import date

from hostbackup.profile.shape import TOO_LARGE, At, Key, Problem, Section, sections
from hostbackup.secrets import SecretSource

_KEY = r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'"""
_DOTTED = rf"(?:{_KEY})(?:\s*\.\s*(?:{_KEY}))*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")


def positions(text: str) -> dict[At, int]:
    """Line numbers, from 1, of every section header and key of a TOML text: good enough to point at, made without a second parser."""
    found: dict[At, int] = {}
    counts: dict[At, int] = {}
    section: At = ()
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


def _parts(dotted: str) -> At:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


def _resolve(header: At, counts: Mapping[At, int]) -> At:
    """A header's keys, with the index of the newest element wherever it goes through an array of tables."""
    resolved: At = ()
    for position, part in enumerate(header):
        resolved = (*resolved, part)
        if resolved in counts and position < len(header) - 1:
            resolved = (*resolved, counts[resolved])
    return resolved


def line_of(key: At, lines: Mapping[At, int]) -> int | None:
    """The line of a key, or of the nearest thing around it."""
    for length in range(len(key), 0, -1):
        if line := lines.get(key[:length]):
            return line
        below = [number for known, number in lines.items() if known[:length] == key[:length]]
        if below:
            return min(below)
    return None


def dotted(key: At) -> str:
    """How a key is called: `old.imap.account[1].user`, counted from 0 as JSON does."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else ascii(part))
    return text


def explain(problem: Problem, root: type[Section]) -> str:
    """The sentence that tells what is wrong. Nothing of a value is told where the value could be a secret."""
    if problem.kind == "unknown":
        return f"unknown key{_meant(problem.at, root)}"
    if problem.kind == "missing":
        return f"is missing{_described(problem.at, root)}"
    if problem.kind == "told":
        return problem.text
    return f"expected {problem.text}, found {found(problem.value, secret=_is_secret(problem.at, root))}"


def found(value: object, *, secret: bool = False) -> str:
    """A value as an error may tell it: short, on one line, and a secret not at all."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a table"}
    if isinstance(value, dict | list | tuple) or secret:
        return names.get(type(value), "something else")
    if isinstance(value, int) and abs(value) >= TOO_LARGE:
        return "a number that is too large"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        shown = value if len(value) <= 60 else value[:57] + "…"
        return '"' + "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown) + '"'
    return str(value) if isinstance(value, int | float | date) else names.get(type(value), type(value).__name__)


def fields(section: type[Section]) -> dict[str, Key]:
    """A section's keys by the names a profile uses."""
    return {key.called: key for key in section.keys().values()}


def _around(key: At, root: type[Section]) -> list[type[Section]]:
    """The sections that the last part of `key` stands in."""
    here: list[type[Section]] = [root]
    for part in key[:-1]:
        if isinstance(part, str):
            here = [inner for model in here if part in fields(model) for inner in sections(fields(model)[part].annotation)]
    return here


def _is_secret(key: At, root: type[Section]) -> bool:
    """Whether a secret may stand at a key, also as part of what should have been a section: `master = "name:password"`."""
    while key and isinstance(key[-1], int):
        key = key[:-1]
    kinds = [fields(model)[key[-1]].annotation for model in _around(key, root) if key and key[-1] in fields(model)]
    return any(_holds_secrets(kind) for kind in kinds)


def _holds_secrets(annotation: object) -> bool:
    inner = [key.annotation for section in sections(annotation) for key in section.keys().values()]
    return annotation is SecretSource or any(_holds_secrets(one) for one in (*typing.get_args(annotation), *inner))


def _described(key: At, root: type[Section]) -> str:
    from hostbackup.profile.describe import descriptions

    for model in _around(key, root):
        for name, text in descriptions(model).items():
            if model.keys()[name].called == key[-1]:
                return f": {text.split('.')[0].strip()}"
    return ""


def _meant(key: At, root: type[Section]) -> str:
    import difflib

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


def _sections(model: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    for name, info in fields(model).items():
        for inner in sections(info.annotation):
            inner_path = f"{path}.{name}" if path else name
            yield f"[{inner_path}]", inner
            yield from _sections(inner, inner_path)
