"""What servers say, where no response code tells it, when they take no login for now: nothing about the password."""

from __future__ import annotations

import re

# "Too many simultaneous connections", "Maximum number of connections … exceeded", "Temporary authentication failure". Nothing that may speak of
# tries with wrong passwords: those are never repeated.
_FOR_NOW = re.compile(
    r"too many (\w+ ){0,2}(connection|session)s|(maximum|limit)\b.*\bconnections?\b|\bconnections? limit"
    r"|\btemporary (\w+ ){0,2}(failure|error|problem)|\btemporarily unavailable",
    re.IGNORECASE,
)


def is_for_now(text: str) -> bool:
    """Whether a refusal, as the server words it, is one of the moment."""
    return _FOR_NOW.search(text) is not None
