"""Which names of a tree a profile leaves out: gitignore patterns over names that are bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hostbackup.errors import UsageError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# pathspec's regular expressions end in `$` and use `.`, which both treat a line feed specially; a name may hold one. surrogateescape only
# uses U+DC80 to U+DCFF, so this stand-in meets no other name.
_LINE_FEED = "\udc0a"


class Excludes:
    """Patterns as in gitignore(5), relative to the tree's root; a later one wins, `!` takes back in.

    As with git, a folder that matches is left out with all that is in it: ask for a folder before asking for what it holds.
    Raises UsageError for a pattern that can match nothing.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        told = [pattern for pattern in patterns if pattern.strip() and not pattern.startswith("#")]
        self._spec = _compile(told) if told else None

    def __bool__(self) -> bool:
        return self._spec is not None

    def matches(self, path: bytes, is_dir: bool) -> bool:
        """Whether the entry at `path` (relative, `/` between components, no final one) is left out."""
        if self._spec is None or not path:
            return False
        name = path.decode("utf-8", "surrogateescape").replace("\n", _LINE_FEED)
        return self._spec.match_file(name + "/" if is_dir else name)


def _compile(patterns: list[str]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec  # late: most commands and most profiles need no patterns

    lines = []
    for pattern in patterns:
        line = pattern.replace("\n", _LINE_FEED)
        # git: `x/**` is all that is in x, not x itself. pathspec would take x with it, and what `!` takes back in with that.
        line = line.rstrip(" ") + "/*" if line.rstrip(" ").endswith("/**") else line
        try:
            usable = all(compiled.include is not None for compiled in GitIgnoreSpec.from_lines([line]).patterns)
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"{pattern!r} is not a pattern that can match a name", where="exclude", hint="patterns are written as in .gitignore")
        lines.append(line)
    return GitIgnoreSpec.from_lines(lines)
