"""Tokens of a response (RFC 3501 §9): atoms, strings, NIL, numbers and parenthesised lists, nested to a bounded depth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

MAX_DEPTH = 64  # nothing that is asked for nests deeper than 3


class Atom(bytes):
    """An atom, number or flag: bytes that stood unquoted."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Streamed:
    """A literal of `size` bytes that was handed on or dropped instead of being kept."""

    size: int


Value: TypeAlias = "Atom | bytes | Streamed | list[Value] | None"

_TOKEN = re.compile(
    rb"""\ *(?:
        (?P<atom>(?:BODY|BINARY)\[[^\]\r\n]*\](?:<\d+>)?|[^\x00\r\n ()"]+)
        |(?P<open>\()
        |(?P<close>\))
        |"(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)"
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


def values(parts: Sequence[bytes | Streamed]) -> list[Value]:
    """The values in a response. `parts` alternates text (even places) and literals (odd places). Raises ValueError where it is malformed."""
    top: list[Value] = []
    here = top
    stack: list[list[Value]] = []
    for place, part in enumerate(parts):
        if place % 2:
            here.append(part)
            continue
        assert isinstance(part, bytes)
        at = 0
        end = len(part)
        while at < end:
            match = _TOKEN.match(part, at)
            if match is None:
                if part[at:].strip(b" ") == b"":
                    break
                raise ValueError("a response that cannot be parsed")
            at = match.end()
            kind = match.lastgroup
            if kind == "atom":
                atom = match["atom"]
                here.append(None if len(atom) == 3 and atom.upper() == b"NIL" else Atom(atom))
            elif kind == "quoted":
                text = match["quoted"]
                here.append(_ESCAPE.sub(rb"\1", text) if b"\\" in text else text)
            elif kind == "open":
                inner: list[Value] = []
                here.append(inner)
                stack.append(here)
                here = inner
                if len(stack) > MAX_DEPTH:
                    raise ValueError("a response nested too deeply")
            else:
                if not stack:
                    raise ValueError("a response with a parenthesis too many")
                here = stack.pop()
    if stack:
        raise ValueError("a response with an open parenthesis")
    return top


def number(value: Value) -> int:
    """A number (RFC 3501; up to 63 bits). Raises ValueError."""
    if not isinstance(value, Atom) or not value.isdigit() or len(value) > 19:
        raise ValueError("not a number")
    return int(value)


def string(value: Value) -> bytes:
    """An astring or nstring as plain bytes. An unquoted NIL where a name has to stand is that name. Raises ValueError."""
    if value is None:
        return b"NIL"
    if isinstance(value, bytes):
        return bytes(value)
    raise ValueError("not a string")


def words(value: Value) -> tuple[str, ...]:
    """A parenthesised list of flags or attributes, as sent. Raises ValueError."""
    if not isinstance(value, list):
        raise ValueError("not a list")
    return tuple([word(item) for item in value])


def word(value: Value) -> str:
    """A flag or attribute. They are ASCII; what some servers send beside it is read as UTF-8, else as Latin-1."""
    text = string(value)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")
