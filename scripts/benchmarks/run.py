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
from scripts.benchmarks.ground import RESULTS, Ground, program
from scripts.benchmarks.measure import measure
from scripts.benchmarks.results import MIB, Case, Row
from scripts.benchmarks.traffic import Traffic
from scripts.benchmarks.trial import Contender, Plan, PreparationFailed

Tell = Callable[[str], None]

# ext4 gives no inode anew that was freed in the last minutes, and looks at each of them before it finds another: whoever makes many files just after
# as many were removed takes several times as long (measured: 1.6 and 10.9 s for the same tree). So trees stay until the bench ends; a few large files
# do no harm.
FEW = 100


def run_plan(name: str, plan: Plan, world: Ground, *, runs: int, tell: Tell, among: Collection[str] = (), limit: float = 3600) -> Case:
    """One case, each contender `runs` times, in turns. `among` names those that take part, all if empty; each run may take `limit` seconds."""
    taking = [one for one in plan.contenders if not among or one.name in among]
    rows = {one.name: Row(one.name, own=one.own, note=one.note) for one in taking}
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


def attempt(one: Contender, world: Ground, row: Row, limit: float = 3600) -> None:
    """One run: its figures into the row, or what went wrong."""
    results = world.folder / RESULTS
    results.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=results))
    trial = None
    try:
        trial = one.trial(scratch)
        subprocess.run(["sync", "-f", str(scratch)], check=True)  # nobody pays for what the one before left
        turns, traffic = (trial.turns() if trial.turns else 0), (trial.traffic() if trial.traffic else Traffic())
        found = measure(trial.command, sync=trial.sync, env=world.environment, limit=limit)
        turns = trial.turns() - turns if trial.turns else 0
        traffic = trial.traffic().since(traffic) if trial.traffic else traffic
        if found.exit != 0:
            row.wrong = _reason(found.exit, found.said)
            return
        if trial.through and trial.through not in found.programs:
            row.wrong = f"not available: {trial.through} was not used"
            return
        if complaint := trial.complaint():
            row.wrong = f"FAILED: {complaint}"
            return
        row.seconds.append(round(found.seconds * trial.times, 3))
        row.cpu.append(round(found.cpu * trial.times, 3))
        row.memory.append(found.memory)
        row.messages = trial.messages
        if trial.turns:
            row.turns.append(turns)
        if trial.traffic:
            row.requests.append(dict(traffic.methods))
            row.up.append(traffic.up)
            row.down.append(traffic.down)
    except PreparationFailed as error:
        row.wrong = f"FAILED before the run: {error}"
    finally:
        if trial is None or trial.wanted.files <= FEW:
            shutil.rmtree(scratch, ignore_errors=True)
            if trial is not None:
                trial.clear()


def _reason(code: int, said: str) -> str:
    """Why a command ended as it did. A usage error of hostbackup's (2) is a feature it does not have."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = (lines[-1] if lines else "it said nothing")[:300]
    if code == -9:
        return f"FAILED: ended after too long a time: {told}"
    return f"{'not available' if code == 2 else 'FAILED'}: exit code {code}: {told}"
