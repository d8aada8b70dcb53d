"""Figures as tables: in a terminal, and in Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from scripts.benchmarks.results import MIB, Bench, Case, Row, ratio

BEGIN, END = "<!-- figures: written by scripts/bench --docs -->", "<!-- end of figures -->"
HEADINGS = ("", "median", "compared", "single runs", "peak memory", "CPU")
_PROGRAMS = (
    "python",
    "paramiko",
    "openssh",
    "rclone",
    "lftp",
    "rsync",
    "tar",
    "dovecot",
    "mbsync",
    "offlineimap",
    "imapclient",
    "restic",
    "aws",
    "moto",
    "boto3",
)


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def megabytes(single: Sequence[int]) -> str:
    """The median of bytes."""
    value = median(single) / 1e6
    return f"{value:.2f} MB" if value < 1 else f"{value:.1f} MB" if value < 100 else f"{value:,.0f} MB"


def line(case: Case) -> str:
    """How far away the servers were."""
    return f"{case.delay_ms:g} ms round trip" if case.delay_ms else "no delay"


def times(value: float) -> str:
    return f"{value:.2f}×" if value < 10 else f"{value:.1f}×"


def _headings(case: Case) -> tuple[str, ...]:
    """Those of every case, and those of what only some cases count."""
    counted = [("messages/s",)] if any(row.messages for row in case.rows) else []
    counted += [("round trips",)] if any(row.turns for row in case.rows) else []
    counted += [("requests", "up", "down")] if any(row.requests for row in case.rows) else []
    return (*HEADINGS, *(heading for some in counted for heading in some))


def _cells(case: Case, row: Row) -> tuple[str, ...]:
    headings = _headings(case)
    if not row.ok:
        return (row.name, row.wrong or "did not run", *[""] * (len(headings) - 2))
    compared = times(ratio(row, case.base)) if case.base else ""
    runs = " ".join(seconds(one).removesuffix(" s") for one in row.seconds)
    cpu = sorted(row.cpu)[len(row.cpu) // 2]
    rate = (f"{row.rate:,.0f}",) if "messages/s" in headings else ()
    turns = (f"{max(row.turns)}",) if "round trips" in headings else ()
    traffic = (f"{row.most_requests:,}", megabytes(row.up), megabytes(row.down)) if "requests" in headings else ()
    name = f"{row.name}, {row.note}" if row.note else row.name
    return (name, seconds(row.median), compared, runs, f"{row.peak / MIB:.0f} MiB", seconds(cpu), *rate, *turns, *traffic)


def _targets(case: Case) -> list[tuple[str, str, str]]:
    verdicts = {True: "met", False: "not met", None: "not known"}
    return [(judged.asked, judged.shown, verdicts[judged.met]) for judged in case.judge()]


def _heading(case: Case) -> str:
    return f"{case.work}; {line(case)}" + ("" if case.full else "; too little for the figures asked for to mean much")


def plain(bench: Bench) -> str:
    """For a terminal."""
    lines = [_machine(bench), ""]
    for case in bench.cases:
        lines += [f"{case.title} ({case.name})", f"  {_heading(case)}"]
        headings = _headings(case)
        rows = [headings, *(_cells(case, row) for row in case.rows)]
        good = [row for row in rows if any(row[2:])]
        widths = [max(len(row[column]) for row in good) for column in range(len(headings))]
        widths[0] = max(len(row[0]) for row in rows)
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            lines.append("  " + ("  ".join(cells) if row in good else f"{cells[0]}  {row[1]}").rstrip())
        lines += [f"  asked for: {asked}; is: {shown}: {verdict}" for asked, shown, verdict in _targets(case)]
        lines.append("")
    return "\n".join(lines)


def _machine(bench: Bench) -> str:
    facts = bench.machine
    programs = ", ".join(f"{name} {facts[name]}" for name in _PROGRAMS if facts.get(name))
    cores = f"{facts['cores']} core{'s' if facts['cores'] != 1 else ''}"
    return (
        f"{facts['cpu']}, {cores}, {facts['memory_mb'] / 1000:.0f} GB of memory, {facts['system']}, kernel {facts['kernel']}, "
        f"{facts['file_system']}; {programs}. {_relays(bench)}"
    )


def _relays(bench: Bench) -> str:
    told = [
        f"{found['round_trip_ms']:g} ms round trip, {found['mb_per_second']:,} MB/s, where {delay} ms were asked for"
        for delay, found in sorted(bench.relays.items(), key=lambda one: -float(one[0]))
    ]
    return f"The relay: {'; '.join(told)}."


def _grid(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "|".join("---:" if one else "---" for one in right) + "|", *lines[1:]]


def markdown(bench: Bench) -> str:
    """The figures section of docs/performance.md."""
    lines = ["![Time for the same work, hostbackup beside other programs](performance.svg)", "", _machine(bench), ""]
    asked = [(case.title, *target) for case in bench.cases if case.full for target in _targets(case)]
    if asked:
        lines += [*_grid([("work", "asked for", "is", ""), *asked], [False, False, True, False]), ""]
    for case in bench.cases:
        lines += [f"### {case.title}", "", f"`{case.name}`: {_heading(case)} ({case.taken})", ""]
        headings = _headings(case)
        lines += [*_grid([headings, *(_cells(case, row) for row in case.rows)], [False, *[True] * (len(headings) - 1)]), ""]
    return "\n".join(lines)


def insert(page: str, figures: str) -> str:
    """The page with its figures section replaced. ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no figures section to replace")
    told = f"{figures.strip()}\n\n" if figures else ""
    return f"{before}{BEGIN}\n\n{told}{END}{after}"
