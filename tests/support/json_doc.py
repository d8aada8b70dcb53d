"""docs/json.md as a test reads it: which keys a command's document may have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

TEXT = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
_BYTES = ("name", "target", "folder", "old", "new", "to", "path")  # those that may end in _b64


@cache
def documented(section: str) -> list[str]:
    """The paths that a section names in the first column of its table."""
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/json.md has no section {section}"
    rows = [line.split("|") for line in found[1].splitlines() if line.startswith("| `")]
    told = [path for row in rows for path in re.findall(r"`([^` ]+)`", row[1])]
    # Keys of a command may be named in the second column too, where they explain each other; they all have a dot.
    return told + [path for row in rows for path in re.findall(r"`([\w*]+(?:\[\])?\.[\w*.\[\]]+)`", row[2])]


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.escape(path).replace(r"\*", r"[^\x00]+?").replace(r"\.", "\0") + r"(\0.*)?" * path.endswith(("*", "schema")))


def undocumented(document: dict[str, Any]) -> set[str]:
    """Paths of a document that neither the common section nor its command's names."""
    patterns = [_pattern(path) for path in documented("Every command") + documented(f"`{document['command']}`")]
    return {path.replace("\0", ".") for path in _paths(document) if not any(pattern.fullmatch(path) for pattern in patterns)}


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """The path of every leaf, keys divided by NUL since a key may hold a dot; empty lists and objects count by themselves."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            plain = key.removesuffix("_b64") if key.removesuffix("_b64") in _BYTES else key
            yield from _paths(inner, f"{path}\0{plain}" if path else plain)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _paths(inner, path + "[]")
    elif isinstance(value, (dict, list)):
        return
    else:
        yield path
