"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
import compileall
import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from scripts.benchmarks import facts
from scripts.benchmarks.chart import chart
from scripts.benchmarks.ground import Ground
from scripts.benchmarks.relay import probe
from scripts.benchmarks.results import Bench, Case, together
from scripts.benchmarks.run import run_plan
from scripts.benchmarks.suites import EVERY, SUITES
from scripts.benchmarks.tables import insert, markdown, plain
from scripts.benchmarks.trial import FULL, QUICK, Plan

DOCS = facts.ROOT / "docs"
GIB = 1 << 30
BUSY = 0.5  # load average of the last minute from which on others are at work


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="scripts/bench", description="hostbackup and what a user would pick instead, alternately, over a line with a delay."
    )
    made.add_argument("suite", nargs="?", choices=list(SUITES), help="which cases: all over SFTP (the default), over IMAP, or to and from buckets")
    made.add_argument("--quick", action="store_true", help="little of everything, once: to see that it works")
    made.add_argument("--files", type=int, metavar="N", help=f"files of the site ({FULL.files:,}; quick: {QUICK.files:,})")
    made.add_argument("--push-files", type=int, metavar="N", help=f"files of a push ({FULL.push:,}; quick: {QUICK.push:,})")
    made.add_argument("--sparse", type=float, metavar="GIB", help=f"size of the sparse file ({FULL.sparse / GIB:g}; the figure to reach is for 10)")
    made.add_argument("--messages", type=int, metavar="N", help=f"messages of the mailbox ({FULL.messages:,}; quick: {QUICK.messages:,})")
    made.add_argument("--many", type=int, metavar="N", help=f"messages of the crowded folder ({FULL.many:,}; quick: {QUICK.many:,})")
    made.add_argument("--copy-files", type=int, metavar="N", help=f"files of a copy to a bucket ({FULL.copied:,}; quick: {QUICK.copied:,})")
    made.add_argument("--copy-large", type=float, metavar="GIB", help=f"size of a copy in large files ({FULL.bulk / GIB:g})")
    made.add_argument("--runs", type=int, metavar="N", help="how often each one runs (3; quick: 1)")
    made.add_argument("--only", nargs="+", choices=EVERY, metavar="CASE", help="some cases, of any kind: " + ", ".join(EVERY))
    made.add_argument("--with", nargs="+", dest="among", metavar="NAME", default=[], help="only these contenders, by their names in the table")
    told = ", ".join(f"{name}: {suite.delay_ms:g}" for name, suite in SUITES.items())
    made.add_argument("--delay", type=float, metavar="MS", help=f"round trip in milliseconds ({told})")
    made.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS", help="end a run that takes longer (3600)")
    made.add_argument("--keep", type=Path, metavar="DIR", help="work here, and keep what was built for the next time")
    made.add_argument(
        "--from", type=Path, nargs="+", dest="sources", metavar="FILE", help="run nothing: figures from earlier --json files, later ones over earlier"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON; - for standard output instead of the table")
    made.add_argument("--svg", type=Path, metavar="FILE", help="write a chart")
    made.add_argument(
        "--docs",
        action="store_true",
        help="write docs/performance.json, docs/performance.svg and the figures in docs/performance.md; cases that were not run keep theirs",
    )
    return made


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measured(told: argparse.Namespace) -> Bench:
    """Runs what was asked for."""
    names = told.only or list(SUITES[told.suite or "sftp"].cases)
    suites = [suite for suite in SUITES.values() if any(name in suite.cases for name in names)]
    data = DOCS / "performance.json"
    if told.docs and data.exists():  # before hours of work, not after them
        here = facts.machine(told.keep if told.keep and told.keep.exists() else Path(tempfile.gettempdir()))
        for suite in suites:
            together(read([data]).machine, here | suite.programs())
    amounts = QUICK if told.quick else FULL
    changes = {"files": told.files, "push": told.push_files, "sparse": int(told.sparse * GIB) if told.sparse else None}
    changes |= {"messages": told.messages, "many": told.many}
    changes |= {"copied": told.copy_files, "bulk": int(told.copy_large * GIB) if told.copy_large else None}
    amounts = dataclasses.replace(amounts, **{key: value for key, value in changes.items() if value})
    runs = told.runs or (1 if told.quick else 3)
    if os.getloadavg()[0] > BUSY:
        say(f"this machine is busy (load {os.getloadavg()[0]:.1f}): the figures will not mean much")
    compileall.compile_dir(facts.ROOT / "hostbackup", quiet=2)  # as an installed package is: the first run is like the others
    delays = [suite.delay_ms if told.delay is None else told.delay for suite in suites]
    relays = {f"{delay:g}": _probed(delay) for delay in dict.fromkeys(delays)}

    def run(name: str, make: Callable[[], Plan], here: Ground) -> Case:
        say(f"{name}: preparing")
        return run_plan(name, make(), here, runs=runs, tell=say, among=told.among, limit=told.limit)

    machine: dict[str, Any] = {}
    cases: list[Case] = []
    for suite, delay in zip(suites, delays, strict=True):
        facts_here, found_here = suite.run(names, told.keep, delay, amounts, run)
        machine, cases = together(machine, facts_here), cases + found_here
    return Bench(machine, relays, cases)


def _probed(delay_ms: float) -> dict[str, Any]:
    found = probe(delay_ms)
    told = {"round_trip_ms": round(found.round_trip_ms, 2), "mb_per_second": round(found.bytes_per_second / 1e6)}
    say(f"the relay: {told['round_trip_ms']} ms round trip, {told['mb_per_second']} MB/s")
    return told


def read(paths: Sequence[Path]) -> Bench:
    """The figures of several files as one, later ones over earlier."""
    found = [Bench.read(json.loads(path.read_text("utf-8"))) for path in paths]
    whole = found[0]
    for later in found[1:]:
        whole = whole.merged(later)
    return whole


def write(bench: Bench, told: argparse.Namespace) -> None:
    document = _text(bench)
    if told.json and str(told.json) == "-":
        print(document, end="")
    else:
        print(plain(bench))
        if told.json:
            told.json.write_text(document, "utf-8")
    if told.svg:
        told.svg.write_text(chart(bench), "utf-8")
    if told.docs:
        publish(bench, DOCS)


def publish(bench: Bench, docs: Path) -> None:
    """Puts the figures into the documents, in place of earlier ones of the same cases. ValueError if those were of another machine."""
    data, page = docs / "performance.json", docs / "performance.md"
    whole = read([data]).merged(bench) if data.exists() else bench
    data.write_text(_text(whole), "utf-8")
    data.with_suffix(".svg").write_text(chart(whole), "utf-8")
    page.write_text(insert(page.read_text("utf-8"), markdown(whole)), "utf-8")


def _text(bench: Bench) -> str:
    return json.dumps(bench.document(), indent=1, ensure_ascii=False) + "\n"


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all ran; 3: something failed or was not available. Whether a figure was reached does not change it."""
    told = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    try:
        bench = read(told.sources) if told.sources else measured(told)
    except KeyboardInterrupt:
        say("interrupted; the servers have been ended")
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        say(f"error: {error}")
        return 1
    try:
        write(bench, told)
    except ValueError as error:
        say(f"error: {error}; --json keeps the figures of this run, and docs/performance.json has to go before others can stand there")
        return 1
    return 3 if any(row.wrong for case in bench.cases for row in case.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
