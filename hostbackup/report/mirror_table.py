"""What there is to tell of mirrors, beside the sums that all copies have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hostbackup.report.failures import name_of
from hostbackup.report.words import number, one_line, part_name, plural

_SHOWN = 20
_SUMS = (
    ("updated", "changed"),
    ("repaired", "repaired"),
    ("adopted", "found equal"),
    ("deleted", "deleted"),
    ("left_alone", "left alone"),
    ("conflicts", "in conflict"),
    ("links", "symlinks not mirrored"),
    ("special", "special files not mirrored"),
)


def lines(details: Mapping[str, Any]) -> list[str]:
    found = []
    for name, done in details.get("copies", {}).items():
        if done.get("mode") != "mirror":
            continue
        told = [f"{number(done[key])} {what}" for key, what in _SUMS if done[key]]
        found += [f"{one_line(name)}: {', '.join(told)}"] if told else []
        if done["vanished"]:
            found.append(f"  {plural(done['vanished'], 'file')} gone from the old server still there: --delete-vanished takes them away")
    rows = [f"  = {_file(row)}: {one_line(row['reason'])}" for row in details.get("left_alone", []) if "copy" in row]
    rows += [f"  renamed: {_file(row)} -> {one_line(row['key'])}" for row in details.get("renamed", [])]
    rows += [f"  only an earlier version: {_file(row)}: {one_line(row['reason'])}" for row in details.get("stale", [])]
    return [*found, *rows[:_SHOWN], *([f"  … and {number(len(rows) - _SHOWN)} more: see --json"] if len(rows) > _SHOWN else [])]


def _file(row: Mapping[str, Any]) -> str:
    return f"{one_line(row['copy'])}: {part_name(row['part'])}/{name_of(row)}"
