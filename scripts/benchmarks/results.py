"""What a bench found, as plain data: single times, medians, ratios, and how they stand to the figures asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

MIB = 1 << 20
UNITS = {
    "memory": "MiB",
    "turns": "round trips",
    "rate": "messages/s",
    "requests": "requests",
    "time": "s",
}  # of figures that are not compared with another's


@dataclass
class Row:
    """One contender of a case. Times in seconds, memory in bytes; `wrong` says why there is no (further) figure."""

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    wrong: str = ""
    own: bool = False
    """Is it hostbackup."""
    note: str = ""
    """What a reader of the figures has to know."""
    messages: int = 0
    """That are moved in one run, where the rate counts."""
    turns: list[int] = field(default_factory=list)
    """How often it waited for the other side, on all connections together, where that counts."""
    requests: list[dict[str, int]] = field(default_factory=list)
    """HTTP requests of a run by method, where they count."""
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    """Bytes to the server and from it, where requests count."""

    @property
    def ok(self) -> bool:
        return bool(self.seconds) and not self.wrong

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def peak(self) -> int:
        return max(self.memory)

    @property
    def most_requests(self) -> int:
        """Requests of the run that had the most."""
        return max(sum(one.values()) for one in self.requests)

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.median


@dataclass(frozen=True)
class Target:
    """A figure to reach.

    `kind` is `faster` (the subject takes at most 1/bound of the peer's time) or `within` (at most bound times it); without a peer `memory` (under
    bound MiB), `turns` (under bound round trips), `requests` (under bound of them), `time` (under bound seconds) or `rate` (bound messages a second).
    """

    kind: str
    subject: str
    peer: str
    bound: float

    @property
    def asked(self) -> str:
        if self.kind == "rate":
            return f"{self.subject}: {self.bound:,g} messages/s"
        if self.kind in UNITS:
            return f"{self.subject}: under {self.bound:g} {UNITS[self.kind]}"
        if self.kind == "within":
            return f"{self.subject}: within {self.bound:g}× of {self.peer}"
        return f"{self.subject}: {self.bound:g}× as fast as {self.peer}" if self.bound != 1 else f"{self.subject}: faster than {self.peer}"


@dataclass(frozen=True)
class Judged:
    """`measured` in the target's own unit; None where a side of it failed."""

    asked: str
    measured: float | None
    unit: str
    met: bool | None

    @property
    def shown(self) -> str:
        if self.measured is None:
            return "no figure"
        if self.unit == "s":
            return f"{self.measured:.2f} s"
        if self.unit != "×":
            return f"{self.measured:,.0f} {self.unit}"
        return f"{self.measured:.2f}×" if self.measured < 10 else f"{self.measured:.1f}×"


@dataclass
class Case:
    """The contenders of one piece of work, run in alternation."""

    name: str
    title: str
    work: str
    delay_ms: float
    rows: list[Row]
    targets: list[Target] = field(default_factory=list)
    full: bool = True
    """The amount of work that the targets are meant for."""
    taken: str = ""
    """When, and which hostbackup."""

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    @property
    def base(self) -> Row | None:
        """What the others are compared with: hostbackup as it comes."""
        first = next((row for row in self.rows if row.own), None)
        return first if first is not None and first.ok else None

    def judge(self) -> list[Judged]:
        """The targets whose sides took part."""
        return [judged for target in self.targets if (judged := self._judge(target))]

    def _judge(self, target: Target) -> Judged | None:
        subject, peer = self.row(target.subject), self.row(target.peer)
        if subject is None or (peer is None and target.kind not in UNITS):
            return None
        unit = UNITS.get(target.kind, "×")
        if not subject.ok or (peer is not None and not peer.ok):
            return Judged(target.asked, None, unit, None)
        if peer is None:
            measured = _measured(subject, target.kind)
            return Judged(target.asked, measured, unit, measured >= target.bound if target.kind == "rate" else measured < target.bound)
        if target.kind == "within":
            measured = subject.median / peer.median
            return Judged(target.asked, measured, unit, measured <= target.bound)
        measured = peer.median / subject.median
        return Judged(target.asked, measured, unit, measured >= target.bound)


def _measured(row: Row, kind: str) -> float:
    """The figure that a target without a peer is about, in its unit."""
    if kind == "rate":
        return row.rate
    if kind == "time":
        return row.median
    if kind == "requests":
        return row.most_requests
    return row.peak / MIB if kind == "memory" else max(row.turns)


def ratio(row: Row, own: Row) -> float:
    """How many times as long `row` took as `own`."""
    return row.median / own.median


@dataclass
class Bench:
    """All of a run: the machine it was on, the line, and the cases."""

    machine: dict[str, Any]
    relays: dict[str, dict[str, Any]]
    """What the relay did when it was measured, before the cases, by the delay asked for in milliseconds: round_trip_ms, mb_per_second."""
    cases: list[Case]

    def document(self) -> dict[str, Any]:
        """As JSON: the data, and beside it the medians and ratios that follow from them."""
        cases = []
        for case in self.cases:
            told = asdict(case)
            for row, data in zip(case.rows, told["rows"], strict=True):
                data["median"] = row.median if row.seconds else None
                data["peak"] = row.peak if row.memory else None
            told["judged"] = [asdict(judged) | {"shown": judged.shown} for judged in case.judge()]
            cases.append(told)
        return {"version": 2, "command": "bench", "machine": self.machine, "relays": self.relays, "cases": cases}

    @classmethod
    def read(cls, document: dict[str, Any]) -> Bench:
        """Back from JSON; what follows from the data is worked out anew."""
        if document.get("version") != 2 or document.get("command") != "bench":
            raise ValueError("not a document of scripts/bench")
        cases = []
        for told in document["cases"]:
            rows = [Row(**{key: value for key, value in one.items() if key not in ("median", "peak")}) for one in told["rows"]]
            targets = [Target(**one) for one in told["targets"]]
            kept = {key: told[key] for key in ("name", "title", "work", "delay_ms", "full", "taken")}
            cases.append(Case(rows=rows, targets=targets, **kept))
        return cls(document["machine"], document["relays"], cases)

    def merged(self, later: Bench) -> Bench:
        """With the cases of a later run on the same machine put in place of the same cases here. ValueError if it was another."""
        machine = together(self.machine, later.machine)
        cases = {case.name: case for case in self.cases} | {case.name: case for case in later.cases}
        return Bench(machine, self.relays | later.relays, list(cases.values()))


def together(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of two runs on one machine, each with those of the programs that took part. ValueError if they do not agree."""
    differing = sorted(key for key in one.keys() & other.keys() if one[key] != other[key])
    if differing:
        raise ValueError(f"figures of different machines or programs do not belong in one table: {', '.join(differing)}")
    return {**one, **other}
