"""One row a mailbox of what a command made of it, for `--json` and for tables: also of those that could not be worked on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hostbackup.jobs.result import Result


@dataclass(frozen=True, slots=True)
class Figures:
    """What a command knows of one mailbox. `state` is "" where the failures alone decide it."""

    messages: int = 0
    bytes: int = 0
    new: int = 0
    state: str = ""


def tell_accounts(result: Result, parts: Iterable[str], known: Mapping[str, Figures], **common: Any) -> None:
    """Adds a row for each of `parts`. A part that nothing is `known` of could not be worked on: `failed`, with the reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for failure in result.failures:
        if failure.side == common.get("side", failure.side):
            reasons[failure.part].append(failure.reason)
    for part in parts:
        figures, told = known.get(part), reasons.get(part, [])
        state = "failed" if figures is None else figures.state or ("incomplete" if told else "complete")
        figures = figures or Figures()
        row = {"part": part, **common, "state": state, "messages": figures.messages, "bytes": figures.bytes, "new": figures.new}
        result.details.setdefault("accounts", []).append({**row, "failed": len(told), "reason": told[0] if told else ""})
