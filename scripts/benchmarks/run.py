"""Runs the contenders of a case in alternation, and checks what each brought."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from scripts.benchmarks import corpus, facts
from scripts.benchmarks.cases import CASES, Amounts, Plan
from scripts.benchmarks.contenders import Contender, PreparationFailed
from scripts.benchmarks.measure import measure
from scripts.benchmarks.results import MIB, Case, Row
from scripts.benchmarks.world import RESULTS, World, program

Tell = Callable[[str], None]

# ext4 gives no inode anew that was freed in the last minutes, and looks at each of them before it finds another: whoever makes many files just after
# as many were removed takes several times as long (measured: 1.6 and 10.9 s for the same tree). So trees stay until the bench ends; a few large files
# do no harm.
FEW = 100


def run_case(name: str, world: World, amounts: Amounts, *, runs: int, tell: Tell, among: Collection[str] = (), limit: float = 3600) -> Case:
    """One case, each contender `runs` times, in turns. `among` names those that take part, all if empty; each run may take `limit` seconds."""
    tell(f"{name}: preparing")
    return run_plan(name, CASES[name](world, amounts), world, runs=runs, tell=tell, among=among, limit=limit)


def run_plan(name: str, plan: Plan, world: World, *, runs: int, tell: Tell, among: Collection[str] = (), limit: float = 3600) -> Case:
    """As run_case, with a plan at hand."""
    taking = [one for one in plan.contenders if not among or one.name in among]
    rows = {one.name: Row(one.name, own=one.own) for one in taking}
    taken = f"{time.strftime('%Y-%m-%d', time.gmtime())}, hostbackup {facts.hostbackup()}, load {os.getloadavg()[0]:.1f} before"
    case = Case(name, plan.title, plan.work, world.delay_ms, list(rows.values()), list(plan.targets), plan.full, taken)
    for one in taking:
        rows[one.name].wrong = _prepare(one)
    for path in plan.warm:
        corpus.warm(path)
    for number in range(runs):
        turn = number % len(taking) if taking else 0  # who goes first changes
        for one in taking[turn:] + taking[:turn]:
            row = rows[one.name]
            if not row.wrong:
                attempt(one, world, row, limit)
            figure = row.wrong or f"{row.seconds[-1]:.2f} s, {row.memory[-1] / MIB:.0f} MiB"
            tell(f"{name}: {number + 1} of {runs}: {one.name}: {figure}")
    return case


def _prepare(one: Contender) -> str:
    missing = [name for name in one.needs if not program(name)]
    if missing:
        return f"not available: no {', '.join(missing)} here"
    try:
        one.prepare()
    except (PreparationFailed, subprocess.CalledProcessError, OSError) as error:
        return f"FAILED before the first run: {error}"
    return ""


def attempt(one: Contender, world: World, row: Row, limit: float = 3600) -> None:
    """One run: its figures into the row, or what went wrong."""
    results = world.folder / RESULTS
    results.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=results))
    trial = None
    try:
        trial = one.trial(scratch)
        subprocess.run(["sync", "-f", str(scratch)], check=True)  # nobody pays for what the one before left
        found = measure(trial.command, sync=trial.sync, env=world.environment, limit=limit)
        if found.exit != 0:
            row.wrong = _reason(found.exit, found.said)
            return
        if trial.through and trial.through not in found.programs:
            row.wrong = f"not available: {trial.through} was not used"
            return
        if complaint := trial.complaint():
            row.wrong = f"FAILED: {complaint}"
            return
        row.seconds.append(round(found.seconds, 3))
        row.cpu.append(round(found.cpu, 3))
        row.memory.append(found.memory)
    finally:
        if trial is None or trial.wanted.files <= FEW:
            shutil.rmtree(scratch, ignore_errors=True)


def _reason(code: int, said: str) -> str:
    """Why a command ended as it did. A usage error of hostbackup's (2) is a feature it does not have."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = (lines[-1] if lines else "it said nothing")[:300]
    if code == -9:
        return f"FAILED: ended after too long a time: {told}"
    return f"{'not available' if code == 2 else 'FAILED'}: exit code {code}: {told}"
