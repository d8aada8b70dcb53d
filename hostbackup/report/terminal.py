"""What each command tells a person in the end, as lines of text. Works from the same figures as `--json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from hostbackup.report import mail_table, mirror_table
from hostbackup.report.failures import name_of
from hostbackup.report.stores import store_lines
from hostbackup.report.words import number, one_line, part_name, plural, size, table

_PLANNED = {"folders": ("folder to make", "folders to make"), "write": ("to write", "to write")}
_KINDS = {"mail/": ("mailbox", "mailboxes"), "sieve/": ("set of filters", "sets of filters")}
_SHOWN = 20  # rows, before "and so many more"


# -- one function a command ---------------------------------------------------------------------------------------------------------------


def _few(rows: list[list[str]], part: int, result: Any, fine: Callable[[list[str]], bool], everything: bool) -> list[str]:
    """Of hundreds of mailboxes a person wants to see those that are not as they should be; how many more there are, in one line.

    Takes the others out of `rows`. A part that a failure names is never one of them.
    """
    troubled = {part_name(failure.part) for failure in result.failures}
    lines = []
    for kind, (one, many) in _KINDS.items():
        mine = [row for row in rows if row[part].startswith(kind)]
        good = [row for row in mine if row[part] not in troubled and fine(row)]
        if everything or len(mine) <= _SHOWN:
            continue
        bad = [row for row in mine if row not in good]
        gone = set(map(id, [*good, *bad[_SHOWN:]]))
        rows[:] = [row for row in rows if id(row) not in gone]
        if len(bad) > _SHOWN:
            lines.append(f"and {plural(len(bad) - _SHOWN, one, many)} more that are not as they should be (--verbose shows each)")
        if good:
            lines.append(f"and {number(len(good))} of {plural(len(mine), one, many)}, all as they should be (--verbose shows each)")
    return lines


def _mail_total(details: Mapping[str, Any], new: str) -> list[str]:
    """One line for all mailboxes of a run, where there are too many to add up by eye."""
    rows = details.get("accounts", [])
    if len(rows) <= _SHOWN:
        return []
    lines = []
    for side in dict.fromkeys(row.get("side", "") for row in rows):
        mine = [row for row in rows if row.get("side", "") == side]
        states = ", ".join(f"{number(count)} {state}" for state, count in Counter(row["state"] for row in mine).items())
        messages, came = sum(row["messages"] for row in mine), sum(row["new"] for row in mine)
        total = f"{plural(messages, 'message')}, {size(sum(row['bytes'] for row in mine))}" + (f", {number(came)} {new}" if came or not side else "")
        lines.append(f"{side + ': ' if side else ''}{plural(len(mine), 'mailbox', 'mailboxes')} ({states}): {total}")
    return lines


def backup(details: Mapping[str, Any], result: Any, everything: bool = False) -> list[str]:
    if "planned" in details:
        return _plan(details, everything)
    counts = result.counts
    rows = []
    for name, part in details.get("parts", {}).items():
        notes = [part["state"]] if part["state"] != "complete" else ["complete"]
        notes += [f"{number(part[key])} {key}" for key in ("failed", "stale", "vanished") if part[key]]
        why = f": {one_line(part['reason'])}" if part["state"] == "carried" else ""
        rows.append([part_name(name), number(part["entries"]), size(part["bytes"]), ", ".join(notes) + why])
    lost = [row for row in details.get("accounts", []) if row["state"] == "failed"]
    rows += [[part_name(row["part"]), "-", "-", "not backed up"] for row in lost]
    others = [*_few(rows, 0, result, lambda row: row[3] == "complete", everything), *_mail_total(details, "new")]
    lines = [f"a new vault was begun at {one_line(details['new_vault'])}"] if "new_vault" in details else []
    lines += [*(table(rows, ["part", "entries", "bytes", "state"]) if rows else []), *others]
    if "snapshot" in details:
        new = f"{number(counts['new'])} new, {number(counts['changed'])} changed, {number(counts['vanished'])} vanished"
        lines.append(f"snapshot {details['snapshot']}: {new}; read {plural(counts['read'], 'entry', 'entries')}, {size(counts['read_bytes'])}")
        if counts["special"]:
            special = plural(counts["special"], "socket, pipe or device", "sockets, pipes or devices")
            lines.append(f"{special} listed and not backed up: there are no bytes in them")
        if counts["resumed"]:
            lines.append(f"{plural(counts['resumed'], 'entry', 'entries')} had been brought by an interrupted run and were not read again")
    return [*lines, *_not_covered(details)]


def _not_covered(details: Mapping[str, Any]) -> list[str]:
    """What belongs to the move and is not in it, as no server offers it: one line a reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in details.get("not_covered", []):
        reasons.setdefault((row["side"], row["reason"]), []).append(row["part"])
    return [
        f"filters: not covered on the {side} side, {plural(len(parts), 'mailbox', 'mailboxes')}: {one_line(reason)}"
        for (side, reason), parts in reasons.items()
    ]


def _plan(details: Mapping[str, Any], everything: bool = False) -> list[str]:
    signs = {"new": "+", "changed": "~", "vanished": "-", "create": "+", "update": "~", "overwrite": "!", "append": "+"}
    lines = []
    many = {kind for kind in ("mail/", "sieve/") if not everything and sum(part.startswith(kind) for part in details["planned"]) > _SHOWN}
    for row in details.get("plan", []):
        if not row["part"].startswith(tuple(many)):
            what = name_of(row) if "messages" not in row else f"{name_of(row, 'folder')}: {plural(row['messages'], 'message')}"
            lines.append(f"{signs.get(row['action'], '?')} {one_line(row['part'])}/{what}")
    sums: dict[str, Counter[str]] = {}
    for part, planned in details["planned"].items():
        kind = next((kind for kind in many if part.startswith(kind)), "")
        if kind:
            sums.setdefault(kind, Counter()).update({"parts": 1, **planned})
        else:
            lines.append(f"{part_name(part)}: {_planned(planned)}")
    for kind, total in sums.items():
        parts = plural(total.pop("parts"), *_KINDS[kind])
        lines.append(f"{parts}: {_planned(total)} (--verbose shows each)")
    lines.append("dry run: nothing was changed")
    return lines


def _planned(planned: Mapping[str, int]) -> str:
    words = {key: _PLANNED.get(key, (key.replace("_", " "),) * 2) for key in planned}
    told = ", ".join(plural(value, *words[key]) for key, value in planned.items() if value and not key.endswith("bytes"))
    return f"{told or 'nothing to do'}; {size(planned.get('wanted_bytes', planned.get('write_bytes', 0)))} to move"


def verify(details: Mapping[str, Any], result: Any, everything: bool = False) -> list[str]:
    rows = []
    for line in details.get("proven", []):
        counts = dict(line["counts"])
        verified = counts.pop("verified", 0)
        others = ", ".join(f"{number(value)} {key}" for key, value in counts.items() if value) or "-"
        moved = size(line["bytes"]) if line["bytes"] or not verified else "-"  # of the view no bytes are told
        rows.append([line["side"], part_name(line["part"]) or "-", number(verified), moved, line["method"], others])
    rows += [["vault", part_name(row["part"]), "-", "-", "-", "never backed up"] for row in details.get("never_saved", [])]
    rows.sort(key=lambda row: row[0] != "vault")
    notes = []
    shown: list[list[str]] = []
    for side in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == side]
        notes += [f"{one_line(side)}: {line}" for line in _few(mine, 1, result, lambda row: row[5] == "-", everything)]
        shown += mine
    lines = [*(table(shown, ["side", "part", "verified", "bytes", "method", "others"]) if shown else []), *notes]
    lines += [*_trials(details), *_mail_total(details, "new there"), *mail_table.folders(details.get("mail", []), everything, result.failures)]
    lines.append(f"snapshot {details['snapshot']}: {plural(result.counts['objects'], 'object')} re-read, {size(result.counts['object_bytes'])}")
    return [*lines, *_not_covered(details)]


def _trials(details: Mapping[str, Any]) -> list[str]:
    """What was restored from copies as a trial, and whether their keys open them."""
    lines = [
        f"{one_line(row['side'])}: the secret key opens snapshot {row['snapshot']} and {plural(len(row['opened']), 'pack')}"
        for row in details.get("recovery_keys", [])
    ]
    for row in details.get("drills", []):
        what = f"{part_name(row['part'])}/{name_of(row)}" if "name" in row or "name_b64" in row else part_name(row["part"])
        lines.append(f"{one_line(row['side'])}: restored as a trial: {what}: {number(row['restored'])} of {number(row['entries'])} as they were")
    return lines


def push(details: Mapping[str, Any], result: Any, everything: bool = False) -> list[str]:
    if "planned" not in details:
        return []
    lines = _left_alone(details)
    if not result.counts["written"] and "proven" not in details and "plan" in details:
        return [*_plan(details, everything), *lines]
    rows = []
    for part, planned in details["planned"].items():
        proven = details.get("proven", {}).get(part)
        verified = number(proven["counts"].get("verified", 0)) if proven else "-"
        settled = planned.get("equal", 0) + planned.get("adopt", 0) + planned.get("settled", 0) + planned.get("there", 0)
        left = planned.get("changed-at-new-side", 0) + planned.get("adapted", 0) + planned.get("moved", 0)
        conflicts = planned.get("conflict", 0)
        method = proven["method"] if proven else "-"
        rows.append([part_name(part), number(planned.get("write", 0)), verified, method, number(settled), number(left), number(conflicts)])
    header = ["part", "to write", "proven", "method", "there already", "left alone", "conflicts"]
    if proven_nowhere(details):
        return [*_plan(details, everything), *lines]
    rows += [
        [part_name(row["part"]), "-", "-", "not pushed", "-", "-", "-"]
        for row in details.get("accounts", [])
        if row["part"] not in details["planned"]
    ]
    notes = [*_few(rows, 0, result, lambda row: row[2] != "-" and row[6] == "0", everything), *_mail_total(details, "written")]
    dressed = result.counts["attributes_written"]
    mail = mail_table.folders(details.get("mail", []), everything, result.failures)
    return [*(table(rows, header) if rows else []), *notes, *([f"{number(dressed)} more got a new mode or time"] if dressed else []), *lines, *mail]


def proven_nowhere(details: Mapping[str, Any]) -> bool:
    """Whether this was a dry run: a plan, and nothing proven."""
    return "proven" not in details


def _left_alone(details: Mapping[str, Any]) -> list[str]:
    rows = mail_table.renamed(details.get("folders", {}))
    rows += [f"  = {part_name(row['part'])}/{name_of(row)}: {one_line(row['reason'])}" for row in details.get("left_alone", [])]
    rows += [
        f"  ~ {part_name(row['part'])}: the script {one_line(row['script'])} files into {one_line(row['folder'])},"
        f" on the new server {one_line(row['becomes'])}: adapt it by hand"
        for row in details.get("filters_to_adapt", [])
    ]
    rows += _not_covered(details)
    rows += [
        f"  saved before overwriting: {part_name(row['part'])}/{name_of(row)} as objects/{row['digest'][:2]}/{row['digest']}"
        for row in details.get("saved", [])
    ]
    return rows[:_SHOWN] + ([f"  = … and {number(len(rows) - _SHOWN)} more: see --json"] if len(rows) > _SHOWN else [])


def copy(details: Mapping[str, Any], result: Any) -> list[str]:
    rows = [
        [one_line(name), one_line(done["target"]), number(done["uploaded"]), size(done["bytes"]), number(done["skipped"]), done["snapshot"]]
        for name, done in details.get("copies", {}).items()
    ]
    told = table(rows, ["copy", "where", "copied", "bytes", "there already", "newest snapshot"]) if rows else []
    return [*told, *mirror_table.lines(details)]


def sync(details: Mapping[str, Any], result: Any, everything: bool = False) -> list[str]:
    """A line for each step; with `everything`, all that the step's own command would print."""
    lines = []
    for step in details["steps"]:
        if "skipped" in step:
            lines.append(f"{step['step']}: skipped: {step['skipped']}")
            continue
        figures = _STEPS.get(step["step"])
        told = figures(step, Counter(step["counts"])) if figures is not None and "counts" in step else ""
        ended = "all as asked" if not step["exit"] else f"exit {step['exit']}"
        lines.append(f"{step['step']}: {ended}{f': {told}' if told else ''}")
        shown = {"check": check, "backup": backup, "verify": verify, "push": push}.get(step["step"])
        if everything and shown is not None and "counts" in step:
            own = SimpleNamespace(counts=Counter(step["counts"]), failures=result.failures)
            lines += [f"  {line}".rstrip() for line in shown(step, own, True)]
    return lines


def _backup_figures(step: Mapping[str, Any], counts: Counter[str]) -> str:
    changed = f"{number(counts['new'])} new, {number(counts['changed'])} changed, {number(counts['vanished'])} vanished"
    held = f"{plural(counts['entries'], 'entry', 'entries')}, {size(counts['bytes'])}"
    return f"{changed}; snapshot {step['snapshot']} holds {held}" if "snapshot" in step else "no snapshot was written"


def _verify_figures(step: Mapping[str, Any], counts: Counter[str]) -> str:
    sums: dict[str, Counter[str]] = {}
    for row in step.get("proven", []):
        sums.setdefault(row["side"], Counter()).update(row["counts"])
    told = [f"{one_line(side)} {', '.join(f'{number(count)} {what}' for what, count in found.items() if count)}" for side, found in sums.items()]
    return "; ".join(told)


def _push_figures(step: Mapping[str, Any], counts: Counter[str]) -> str:
    there = sum(counts[key] for key in ("equal", "adopt", "settled", "there"))
    told = f"{number(counts['written'])} written, {number(counts['verified'])} proven, {number(there)} there already"
    left = sum(counts[key] for key in ("changed-at-new-side", "adapted", "moved"))
    return told + (f", {number(left)} left alone" if left else "") + (f", {plural(counts['conflict'], 'conflict')}" if counts["conflict"] else "")


def _copy_figures(step: Mapping[str, Any], counts: Counter[str]) -> str:
    return "; ".join(
        f"{one_line(name)}: {number(done['uploaded'])} copied, {size(done['bytes'])}, {number(done['skipped'])} there already"
        for name, done in step.get("copies", {}).items()
    )


_STEPS: dict[str, Callable[[Mapping[str, Any], Counter[str]], str]] = {
    "backup": _backup_figures,
    "verify": _verify_figures,
    "push": _push_figures,
    "copy": _copy_figures,
}


def snapshots(details: Mapping[str, Any], result: Any) -> list[str]:
    rows = [
        [row["id"], row["command"], str(row["exit"]), number(row["entries"]), size(row["bytes"]), number(row["failures"])]
        for row in details["snapshots"]
    ]
    return table(rows, ["snapshot", "made by", "exit", "entries", "bytes", "failures"]) if rows else ["no snapshot yet"]


def ls_line(row: Mapping[str, Any]) -> str:
    kind = row["kind"]
    if kind == "part":
        return f"{number(row['entries']):>12}  {size(row['bytes']):>9}  {part_name(row['name'])}  ({row['state']})"
    if kind == "folder":
        return f"{number(row['messages']):>12}  {one_line(row['display'])}  ({name_of(row)})"
    marks = "".join(f"  [{key}: {one_line(row[key])}]" for key in ("stale", "failed", "vanished") if key in row)
    if kind == "message":
        return f"{row['uid']:>10}  {row['size']:>12}  {one_line(row['internaldate'])}  {one_line(' '.join(row['flags']))}{marks}"
    letter = {"dir": "d", "link": "l", "file": "-"}.get(kind, "?")
    arrow = f" -> {name_of(row, 'target')}" if kind == "link" else ""
    return f"{letter}{row['mode']:04o}  {row['size']:>12}  {name_of(row)}{arrow}{marks}"


def diff_line(row: Mapping[str, Any]) -> str:
    sign = {"added": "+", "removed": "-", "changed": "~", "metadata": "m", "part-added": "+", "part-removed": "-"}[row["action"]]
    return f"{sign} {part_name(row['part'])}/{name_of(row)}".rstrip("/")


def restore_vault(details: Mapping[str, Any], result: Any) -> list[str]:
    counts = result.counts
    what = f"{plural(counts['objects'], 'object')}, {plural(counts['manifests'], 'manifest')} and {plural(counts['snapshots'], 'snapshot')}"
    lines = [f"{what}, {size(counts['bytes'])}, brought to {one_line(details['to'])}; {number(counts['existing'])} stood there already"]
    return [*lines, f"the newest snapshot there is {details['snapshot']}; point `vault` in the profile to it, and go on from there"]


def restore(details: Mapping[str, Any], result: Any) -> list[str]:
    counts = result.counts
    told = f"{plural(counts['files'], 'file')}, {plural(counts['folders'], 'folder')}, {plural(counts['links'], 'symlink')}, {size(counts['bytes'])}"
    lines = [f"restored from snapshot {details['snapshot']} to {one_line(details['to'])}: {told}"]
    if counts["existing"]:
        lines.append(f"{plural(counts['existing'], 'entry', 'entries')} stood there already, with the same contents")
    renamed = list(details["renamed"].items())
    lines += [f"  renamed, since this disk refuses the name: {one_line(was)} -> {one_line(now)}" for now, was in renamed[:_SHOWN]]
    return lines


def prune(details: Mapping[str, Any], result: Any) -> list[str]:
    lines = [f"keep  {row['id']}  {'; '.join(row['why'])}" for row in details["keep"]]
    lines += [f"{'gone' if details['applied'] else 'go'}    {name}" for name in details["go"]]
    verb = "freed" if details["applied"] else "would be freed"
    lines.append(f"{size(details['bytes'])} in {plural(details['objects'], 'object')} and {plural(details['manifests'], 'manifest')} {verb}")
    for name, freed in details.get("copies", {}).items():
        what = f"{plural(freed['snapshots'], 'snapshot')}, {plural(freed['dropped'], 'pack')}, and the waste in {number(freed['rewritten'])} more"
        guarded = f"; {number(freed['guarded'])} that nothing needs are kept by the store for now" if freed["guarded"] else ""
        lines.append(f"copy {one_line(name)}: {what}: {size(freed['bytes'])} {verb}{guarded}")
    return lines if details["applied"] else [*lines, "nothing was changed; --apply does it"]


def _mailboxes(details: Mapping[str, Any], everything: bool) -> list[str]:
    """What `check` found at each login, by section."""
    lines = []
    found = details.get("mailboxes", [])
    for section in dict.fromkeys(row["section"] for row in found):
        rows = [row for row in found if row["section"] == section]
        shown = rows if everything or len(rows) <= _SHOWN else [row for row in rows if row.get("shared")][:_SHOWN]
        columns = [key for key in ("folders", "messages", "bytes", "filters") if any(key in row for row in rows)]
        body = [
            [section, one_line(row["user"]), *("-" if key not in row else size(row[key]) if key == "bytes" else number(row[key]) for key in columns)]
            for row in shown
        ]
        lines += table(body, ["section", "mailbox", *columns]) if body else []
        lines += [
            f"  shared with {one_line(row['user'])} by somebody else: {one_line(name)}" for row in shown for name in row.get("shared", [])[:_SHOWN]
        ]
        if len(rows) > len(shown):
            sums = ", ".join(
                f"{size(total) if key == 'bytes' else number(total)} {key}" for key in columns for total in [sum(row.get(key, 0) for row in rows)]
            )
            lines.append(f"{section}: {plural(len(rows), 'mailbox', 'mailboxes')} opened: {sums} (--verbose shows each)")
    return lines


def check(details: Mapping[str, Any], result: Any, everything: bool = False) -> list[str]:
    lines = []
    for row in details["servers"]:
        lines.append(f"{row['section']}  {one_line(row['host'])} port {row['port']}  host key {row.get('host_key', '?')}")
        if "address" in row:
            shell = "commands allowed" if row["shell"] else "SFTP only"
            lines.append(f"         at {row['address']}, {one_line(row['software'])}, {shell}")
        if "recorded_in" in row:
            lines.append(f"         its key is recorded in {one_line(row['recorded_in'])}: compare it with what the provider tells you")
        if "advice" in row:
            lines.append(f"         {one_line(row['advice'])}")
    for row in details.get("parts", []):
        other = f", {plural(row['other'], 'special file')} (not backed up)" if row["other"] else ""
        told = f"{plural(row['files'], 'file')}, {plural(row['folders'], 'folder')}, {plural(row['links'], 'symlink')}, {size(row['bytes'])}{other}"
        lines.append(f"{one_line(row['part'])}: {told}")
    lines += [*_mailboxes(details, everything), *_not_covered(details)]
    for row in details.get("copies", []):
        lines.append(
            f"copy {one_line(row['name'])}: {one_line(row['target'])}, "
            f"{plural(row['snapshots'], 'snapshot') if 'snapshots' in row else 'mirror'}{', probed' if 'probed' in row else ''}"
        )
        lines += store_lines(row.get("store", {}))
    lines += [
        f"adapt on the new server: {part_name(row['part'])}/{name_of(row)} names {one_line(row['names'])}"
        for row in details.get("to_adapt", [])[:_SHOWN]
    ]
    vault, estimate = details["vault"], details["estimate"]
    lines.append(f"vault {one_line(vault['path'])}: {size(vault['free_bytes'])} free")
    if vault["exists"] or not details.get("parts"):
        return lines
    return [
        *lines,
        f"estimate for a first backup: {size(estimate['bytes'])} of web and local files, about {_duration(estimate['seconds'])} and the mail",
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return plural(max(1, round(seconds)), "second")
    return plural(round(seconds / 60), "minute") if seconds < 5400 else f"{seconds / 3600:.1f} hours"
