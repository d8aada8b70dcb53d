"""Which names of a tree a profile leaves out: gitignore patterns over names that are bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hostbackup.errors import UsageError

# pathspec's regular expressions end in `$` and use `.`, which both treat a line feed specially; a name may hold one. surrogateescape only
# uses U+DC80 to U+DCFF, so this stand-in meets no other name.
_LINE_FEED = "\udc0a"


class Excludes:
    """Patterns as in gitignore(5), relative to the tree's root; a later one wins, `!` takes back in.

    As with git, a folder that matches is left out with all that is in it: ask for a folder before asking for what it holds.
    Raises UsageError for a pattern that can match nothing.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._rules = [_compile(pattern) for pattern in patterns if pattern.strip() and not pattern.startswith("#")]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def matches(self, path: bytes, is_dir: bool) -> bool:
        """Whether the entry at `path` (relative, `/` between components, no final one) is left out."""
        if not self._rules or not path:
            return False
        name = path.decode("utf-8", "surrogateescape").replace("\n", _LINE_FEED)
        if is_dir:
            name += "/"
        return next((leaves_out for rule, leaves_out in reversed(self._rules) if rule.search(name)), False)

    def covers(self, path: bytes, is_dir: bool) -> bool:
        """As `matches`, for an entry asked for by itself: what lies in a folder that matches is covered too."""
        if not self._rules:
            return False
        parts = path.split(b"/")
        return any(self.matches(b"/".join(parts[:count]), is_dir or count < len(parts)) for count in range(1, len(parts) + 1))


def _compile(pattern: str) -> tuple[re.Pattern[str], bool]:
    """The pattern as an expression for whole names (a folder's ends in `/`), and whether what matches is left out."""
    from pathspec import GitIgnoreSpec  # late: most commands and most profiles need no patterns

    line = pattern.replace("\n", _LINE_FEED)
    # git: `x/**` is all that is in x, not x itself. pathspec would take x with it, and what `!` takes back in with that.
    bare = line.rstrip(" ")
    if bare.endswith(("/**", "/**/")):
        line = bare.rstrip("/") + ("/*/" if bare.endswith("/") else "/*")
    try:
        (compiled,) = GitIgnoreSpec.from_lines([line]).patterns
        expression = getattr(compiled, "regex", None)
    except ValueError:
        expression = None
    if expression is None or compiled.include is None:
        raise UsageError(f"{pattern!r} is not a pattern that can match a name", where="exclude", hint="patterns are written as in .gitignore")
    # pathspec also matches whatever lies below a match. Here that is decided at the folder, so that `*` followed by `!*/` works as with git.
    return re.compile(expression.pattern + r"\Z"), compiled.include
