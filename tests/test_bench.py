"""The benchmark measures what it says: the trees are the same each time, a failure is never a time, the documents show the data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from scripts.benchmarks import corpus
from scripts.benchmarks import measure as measures
from scripts.benchmarks.chart import chart
from scripts.benchmarks.corpus import Corpus, Shape
from scripts.benchmarks.ground import Ground
from scripts.benchmarks.measure import measure
from scripts.benchmarks.results import MIB, Bench, Case, Row, Target
from scripts.benchmarks.run import attempt, run_plan
from scripts.benchmarks.tables import insert, markdown, plain
from scripts.benchmarks.trial import Contender, Plan, Trial

ROOT = Path(__file__).parent.parent
MACHINE = {"cores": 2, "cpu": "some", "memory_mb": 4000, "system": "Debian", "kernel": "6", "file_system": "ext4", "python": "3.11", "rclone": "1.75"}
LINE = {"20": {"round_trip_ms": 20.1, "mb_per_second": 900}}


# -- trees --------------------------------------------------------------------------------------------------------------------------------------


def _state(path: Path) -> dict[str, tuple[object, ...]]:
    return {
        str(one.relative_to(path)): (one.stat().st_mtime_ns, hashlib.sha256(one.read_bytes()).hexdigest() if one.is_file() else "")
        for one in [path, *path.rglob("*")]
    }


def test_a_tree_is_the_same_every_time(tmp_path: Path) -> None:
    one, two = (corpus.tree(tmp_path / name, Shape(300)) for name in ("one", "two"))
    assert (one.files, one.folders, one.size) == (two.files, two.folders, two.size)
    assert _state(one.path) == _state(two.path)
    other = corpus.tree(tmp_path / "other", Shape(300, seed=7))
    assert _state(other.path) != _state(one.path)


def test_a_tree_has_the_files_it_tells_of_no_two_alike(tmp_path: Path) -> None:
    tree = corpus.tree(tmp_path / "tree", Shape(500, mean=3000))
    assert corpus.count(tree.path) == (500, tree.size)
    assert sum(1 for one in tree.path.rglob("*") if one.is_dir()) == tree.folders == 35
    assert 0.5 < tree.size / (500 * 3000) < 2
    heads = [one.read_bytes()[:20] for one in tree.path.rglob("*") if one.is_file() and one.stat().st_size > 20]
    assert len(heads) > 400
    assert all(re.match(rb"[0-9a-f]{1,3} [0-9a-f]{16}$", head[: head.index(b" ") + 17]) for head in heads)
    assert len(set(heads)) == len(heads)
    assert max(len(one.relative_to(tree.path).parts) for one in tree.path.rglob("*")) <= 9


def test_a_tree_that_stands_is_taken_only_if_it_is_the_one_asked_for(tmp_path: Path) -> None:
    first = corpus.tree(tmp_path / "tree", Shape(20))
    (first.path / "mark").touch()
    assert corpus.tree(tmp_path / "tree", Shape(20)) == first
    assert (first.path / "mark").exists()
    assert corpus.tree(tmp_path / "tree", Shape(21)).files == 21
    assert not (first.path / "mark").exists()


def test_single_large_files_have_their_size_and_a_sparse_one_takes_no_room(tmp_path: Path) -> None:
    one, two = (corpus.large(tmp_path / name, 2_500_000) for name in ("one", "two"))
    assert (one.path / "random.bin").read_bytes() == (two.path / "random.bin").read_bytes()
    assert corpus.count(one.path) == (1, 2_500_000)
    image = corpus.sparse(tmp_path / "image", 1 << 30)
    assert corpus.count(image.path) == (1, 1 << 30)
    assert (image.path / "image.raw").stat().st_blocks * 512 < 1 << 20


# -- one run ------------------------------------------------------------------------------------------------------------------------------------


def test_memory_is_that_of_all_processes_together() -> None:
    child = "import hashlib; data = bytearray(b'x') * (80 << 20); [hashlib.sha256(data) for _ in range(6)]"
    both = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}]); {child}; sys.exit(child.wait())"
    found = measure([sys.executable, "-c", both])
    assert found.exit == 0
    assert found.memory > 150 * MIB
    assert found.cpu > 0


def test_a_run_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    # Time passes when the command is ready for it.
    monkeypatch.setattr(measures, "time", SimpleNamespace(perf_counter=lambda: 1000.0 if started.exists() else 0.0))
    found = measure(["sh", "-c", f"sleep 600 & echo $! >{started}.new; mv {started}.new {started}; wait"], limit=900)
    assert found.exit == -9
    _gone(int(started.read_text()))


def test_what_a_run_leaves_running_is_ended() -> None:
    found = measure(["sh", "-c", "sleep 600 & echo $!"])
    assert found.exit == 0
    _gone(int(found.said))


def _gone(pid: int) -> None:
    line = Path(f"/proc/{pid}/cmdline")
    deadline = time.monotonic() + 20
    with contextlib.suppress(OSError):  # it may go between two looks
        while line.read_bytes():  # a zombie has no command line
            assert time.monotonic() < deadline


def _nowhere(folder: Path) -> Ground:
    return Ground(folder, 0)


def _attempt(folder: Path, command: list[str], *, through: str = "") -> Row:
    row, wanted = Row("some"), Corpus(folder, 2, 0, 7)
    contender = Contender("some", [], lambda scratch: Trial(command, scratch, wanted, sync=scratch, through=through))
    attempt(contender, _nowhere(folder), row)
    return row


def test_a_failure_is_told_and_never_a_time(tmp_path: Path) -> None:
    assert _attempt(tmp_path, ["sh", "-c", "echo 'no route' >&2; exit 3"]).wrong == "FAILED: exit code 3: no route"
    assert _attempt(tmp_path, ["sh", "-c", "echo 'no such key' >&2; exit 2"]).wrong == "not available: exit code 2: no such key"
    short = _attempt(tmp_path, ["true"])
    assert short.wrong == "FAILED: 0 files with 0 bytes arrived instead of 2 with 7"
    assert not short.seconds
    assert not short.ok
    assert _attempt(tmp_path, ["true"], through="ssh").wrong == "not available: ssh was not used"
    assert list((tmp_path / "results").iterdir()) == []


def test_contenders_take_turns_and_who_fails_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def made(name: str, *, files: int = 0, needs: list[str] | None = None) -> Contender:
        def trial(scratch: Path) -> Trial:
            asked.append(name)
            return Trial(["true"], scratch, Corpus(tmp_path, files, 0, 0))

        return Contender(name, needs or [], trial)

    contenders = [made("one"), made("two"), made("wrong", files=1), made("absent", needs=["no-such-program"]), made("not asked for")]
    plan = Plan("Title", "work", contenders, [], [], True)
    case = run_plan("case", plan, _nowhere(tmp_path), runs=3, tell=lambda _: None, among=["one", "two", "wrong", "absent"])
    assert asked == ["one", "two", "wrong", "two", "one", "one", "two"]
    assert [(row.name, len(row.seconds)) for row in case.rows] == [("one", 3), ("two", 3), ("wrong", 0), ("absent", 0)]
    assert case.rows[3].wrong == "not available: no no-such-program here"


# -- figures ------------------------------------------------------------------------------------------------------------------------------------


def _bench() -> Bench:
    rows = [
        Row("hostbackup", [10.0, 12.0, 11.0], [5.0, 5.0, 5.0], [90 * MIB, 100 * MIB, 95 * MIB], own=True),
        Row("rclone", [220.0, 176.0, 170.0], [8.0, 8.0, 8.0], [80 * MIB] * 3),
        Row("a|b <&> tar", [5.5, 5.0, 6.0], [1.0, 1.0, 1.0], [20 * MIB] * 3),
        Row("lftp", wrong="FAILED: exit code 1: no"),
    ]
    targets = [
        Target("faster", "hostbackup", "rclone", 15),
        Target("within", "hostbackup", "a|b <&> tar", 1.9),
        Target("memory", "hostbackup", "", 250),
        Target("faster", "hostbackup", "lftp", 10),
        Target("faster", "hostbackup", "rsync", 1),
    ]
    return Bench(MACHINE, LINE, [Case("first", "First & last", "3 files", 20.0, rows, targets, True, "2026-11-22")])


def test_targets_are_judged_by_medians_and_only_where_both_sides_ran() -> None:
    judged = _bench().cases[0].judge()
    assert [(one.shown, one.met) for one in judged] == [("16.0×", True), ("2.00×", False), ("100 MiB", True), ("no figure", None)]


def test_json_is_read_back_as_it_was() -> None:
    document = json.loads(json.dumps(_bench().document()))
    assert Bench.read(document) == _bench()
    assert [row["median"] for row in document["cases"][0]["rows"]] == [11.0, 176.0, 5.5, None]
    with pytest.raises(ValueError, match="not a document"):
        Bench.read({"version": 2, "command": "backup"})


def test_figures_of_two_runs_are_joined_only_from_one_machine() -> None:
    later = _bench()
    later.cases[0].taken = "later"
    later.cases.append(Case("second", "Second", "", 20.0, []))
    assert [(case.name, case.taken) for case in _bench().merged(later).cases] == [("first", "later"), ("second", "")]
    with pytest.raises(ValueError, match="different machines or programs do not belong in one table: kernel"):
        _bench().merged(Bench({**MACHINE, "kernel": "7"}, LINE, []))


def test_tables_show_times_ratios_failures_and_verdicts() -> None:
    text = plain(_bench())
    assert re.search(r"rclone +176 s +16\.0× +220 176 170 +80 MiB +8\.00 s", text)
    assert re.search(r"lftp +FAILED: exit code 1: no$", text, re.MULTILINE)
    assert "asked for: hostbackup: 15× as fast as rclone; is: 16.0×: met" in text
    page = markdown(_bench())
    rows = [row for row in page.splitlines() if row.startswith("|")]
    assert "| First & last | hostbackup: 15× as fast as rclone | 16.0× | met |" in rows
    assert "| a\\|b <&> tar | 5.50 s | 0.50× | 5.50 5.00 6.00 | 20 MiB | 1.00 s |" in rows


def test_the_chart_is_svg_with_bars_as_long_as_the_times() -> None:
    name = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(chart(_bench()))
    bars = [(one.get("class"), float(one.get("width", ""))) for one in root.iter(f"{name}rect") if one.get("class") != "ground"]
    assert [kind for kind, _ in bars] == ["own", "other", "other"]
    assert [round(176 * width / bars[1][1], 1) for _, width in bars] == [11.0, 176.0, 5.5]
    told = ["".join(one.itertext()) for one in root.iter(f"{name}text")]
    assert {"First & last", "a|b <&> tar", "11.0 s"} <= set(told)
    assert not any("lftp" in one for one in told)
    assert max(float(one.get("y", "0")) for one in root.iter(f"{name}text")) < float(root.get("height", ""))


def test_figures_replace_figures_in_a_page_and_nothing_else() -> None:
    page = "# Top\n\n<!-- figures: written by scripts/bench --docs -->\n\nold\n\n<!-- end of figures -->\n\nrest\n"
    assert insert(page, "new\n") == page.replace("old", "new")
    assert insert(insert(page, ""), "old") == page
    with pytest.raises(ValueError, match="no figures section"):
        insert("# Top\n", "new")


def test_the_figures_in_the_documents_are_those_of_the_data() -> None:
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    data = ROOT / "docs" / "performance.json"
    bench = Bench.read(json.loads(data.read_text("utf-8"))) if data.exists() else None
    assert insert(page, markdown(bench) if bench else "") == page
    with contextlib.suppress(FileNotFoundError):
        assert bench is not None or not data.with_suffix(".svg").exists()
        assert bench is None or data.with_suffix(".svg").read_text("utf-8") == chart(bench)


# -- all of it ----------------------------------------------------------------------------------------------------------------------------------


def test_a_small_bench_runs_from_server_to_table(tmp_path: Path) -> None:
    amount = ["--quick", "--files", "40", "--delay", "0", "--only", "first-pull-shell", "--with", "hostbackup", "tar over ssh"]
    where = ["--keep", str(tmp_path / "work"), "--json", str(tmp_path / "out.json"), "--svg", str(tmp_path / "out.svg")]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks", *amount, *where], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    bench = Bench.read(json.loads((tmp_path / "out.json").read_text("utf-8")))
    (case,) = bench.cases
    assert [(row.name, len(row.seconds), row.own, row.wrong) for row in case.rows] == [("hostbackup", 1, True, ""), ("tar over ssh", 1, False, "")]
    assert case.row("hostbackup") is not None
    assert not case.full
    assert [judged.asked for judged in case.judge()] == ["hostbackup: within 1.5× of tar over ssh"]
    assert done.stdout.strip() == plain(bench).strip()
    ElementTree.parse(tmp_path / "out.svg")
    assert sorted(one.name for one in (tmp_path / "work").iterdir() if one.is_dir()) == ["home", "site"]  # the runs' own folders are gone
