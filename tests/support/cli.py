"""Runs the real command line in a process of its own, as a person or a cron job does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.zygote import Zygote

_ZYGOTE = Zygote()


@dataclass(frozen=True)
class Ran:
    exit: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def reasons(self) -> str:
        """All failures of the JSON document as one text."""
        return "\n".join(f"{row['reason']} {row['hint']}" for row in self.json["failures"])


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "hostbackup.cli.main", *map(str, arguments)]


def hostbackup(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 120) -> Ran:
    """Runs to the end. No run may ever show a traceback, whatever it was given."""
    environment = {**os.environ, **(env or {})}
    done = _ZYGOTE.run([str(argument) for argument in arguments], cwd, environment, timeout)
    if done is None:
        done = subprocess.run(
            command(*arguments), cwd=cwd, env=environment, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False
        )
    ran = Ran(done.returncode, done.stdout.decode("utf-8", "surrogateescape"), done.stderr.decode("utf-8", "surrogateescape"))
    assert "Traceback" not in ran.err, ran.err
    assert "Traceback" not in ran.out, ran.out
    return ran


def write_profile(folder: Path, text: str) -> Path:
    """A profile only its owner can read, as one that may hold a password has to be."""
    path = folder / "move.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path
