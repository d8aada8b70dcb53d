"""What a command says in the end: one JSON document on stdout with `--json`, else words."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hostbackup.cli.streams import say
from hostbackup.errors import Exit, HostbackupError
from hostbackup.model import Failure
from hostbackup.report.words import printable

VERSION = 1


def told(
    *,
    command: str,
    profile: str,
    exit_code: int,
    started: datetime.datetime,
    counts: Mapping[str, int],
    failures: Sequence[Failure],
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """The document (docs/json.md). A command's own keys follow the common ones and never replace them."""
    common = {
        "version": VERSION,
        "command": command,
        "profile": profile,
        "exit": int(exit_code),
        "started": moment(started),
        "finished": moment(datetime.datetime.now(datetime.UTC)),
        "counts": dict(counts),
        "failures": [failure.as_json() for failure in failures],
    }
    return common | {key: value for key, value in details.items() if key not in common}


def moment(when: datetime.datetime) -> str:
    return when.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def emit(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout, in ASCII: a name with odd characters harms no terminal and no pipe."""
    say(json.dumps(document, indent=2, default=str))


def failure_of(error: HostbackupError) -> Failure:
    return Failure("", "", error.where.encode("utf-8", "surrogateescape"), error.code, error.reason, error.hint)


def refuse(arguments: Sequence[str], text: str, help_of: str, error: HostbackupError | None = None) -> int:
    """Ends a command line that never became a command: wrong usage, or an error before there was anything to report on."""
    code = int(error.exit) if error else int(Exit.USAGE)
    if "--json" in arguments:
        failure = failure_of(error) if error else Failure("", "", b"", "usage", text)
        command = next((word for word in arguments if not word.startswith("-")), "")
        now = datetime.datetime.now(datetime.UTC)
        emit(told(command=command, profile="", exit_code=code, started=now, counts={}, failures=[failure], details={}))
    hint = f"\nTry `{help_of} --help`." if help_of else ""
    say(f"hostbackup: {printable(text)}{hint}", error=True)
    return code


def interrupted(arguments: Sequence[str]) -> int:
    if "--json" in arguments:
        command = next((word for word in arguments if not word.startswith("-")), "")
        now = datetime.datetime.now(datetime.UTC)
        failure = Failure("", "", b"", "interrupted", "interrupted")
        emit(told(command=command, profile="", exit_code=Exit.INTERRUPTED, started=now, counts={}, failures=[failure], details={}))
    say("hostbackup: interrupted", error=True)
    return Exit.INTERRUPTED
