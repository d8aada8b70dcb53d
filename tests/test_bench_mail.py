"""The mail half of the benchmark: the same mailbox each time, nothing missing that is told as moved, every program at work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks import mail_corpus
from scripts.benchmarks.__main__ import publish
from scripts.benchmarks.mail_corpus import FOLDERS, Bodies, Mailbox, Shape, Whole, single
from scripts.benchmarks.results import MIB, Bench, Case, Row, Target
from scripts.benchmarks.suites import EVERY, SUITES
from scripts.benchmarks.tables import BEGIN, END, markdown, plain

ROOT = Path(__file__).parent.parent
LINE = {"20": {"round_trip_ms": 20.1, "mb_per_second": 900}}
MACHINE = {"cores": 2, "cpu": "some", "memory_mb": 4000, "system": "Debian", "kernel": "6", "file_system": "ext4", "python": "3.11"}


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Mailbox:
    return mail_corpus.mailbox(tmp_path_factory.mktemp("mail") / "office", Shape(200))


# -- mailboxes ----------------------------------------------------------------------------------------------------------------------------------


def _state(box: Mailbox) -> list[tuple[str, float, bytes]]:
    return [(str(path.relative_to(box.path)), path.stat().st_mtime, path.read_bytes()) for path in box.letters()]


def test_a_mailbox_is_the_same_every_time_and_as_it_tells(office: Mailbox, tmp_path: Path) -> None:
    again = mail_corpus.mailbox(tmp_path / "again", Shape(200))
    assert _state(again) == _state(office)
    assert (again.messages, again.folders, again.size) == (office.messages, office.folders, office.size) == (200, 5, office.size)
    assert {path.parent.parent.name for path in office.letters()} - {"office"} == {f".{name}" for name, _ in FOLDERS[1:]}
    assert office.size == sum(int(path.name.partition("W=")[2].partition(":")[0]) for path in office.letters())
    assert 0.5 < office.size / (200 * 16_000) < 2
    assert max(office.bodies.values()) == max(office.whole.values()) == 1, "no two are alike"


def test_a_mailbox_that_stands_is_taken_only_if_it_is_the_one_asked_for(tmp_path: Path) -> None:
    first = mail_corpus.mailbox(tmp_path / "box", Shape(20))
    (first.path / "mark").touch()
    assert mail_corpus.mailbox(tmp_path / "box", Shape(20)) == first
    assert (first.path / "mark").exists()
    assert mail_corpus.mailbox(tmp_path / "box", Shape(21)).messages == 21
    assert not (first.path / "mark").exists()


def test_one_message_can_be_of_any_size(tmp_path: Path) -> None:
    one = single(tmp_path / "one", 5_000_000)
    assert one.messages == 1
    assert 4_900_000 < one.size < 5_200_000


def _elsewhere(office: Mailbox, folder: Path, *, ending: bytes) -> list[Path]:
    """The same messages in another Maildir, under names of its own."""
    (folder / "cur").mkdir(parents=True)
    made = [folder / "cur" / f"{number}.x:2," for number in range(office.messages)]
    for path, letter in zip(made, office.letters(), strict=True):
        path.write_bytes(letter.read_bytes().replace(b"\n", ending))
    return made


def test_what_arrived_is_compared_byte_for_byte(office: Mailbox, tmp_path: Path) -> None:
    made = _elsewhere(office, tmp_path / "to", ending=b"\r\n")
    assert Whole(office).complaint(tmp_path / "to") == ""
    assert Whole(office, lf=True).complaint(tmp_path / "to") != ""
    made[3].write_bytes(made[3].read_bytes()[:-1])
    made[4].unlink()
    assert Whole(office).complaint(tmp_path / "to") == "of 200 messages 2 did not arrive as they were, and 1 are others"
    assert Whole(office).complaint(tmp_path / "nowhere") == "of 200 messages 200 did not arrive as they were, and 0 are others"


def test_headers_of_a_programs_own_are_allowed_where_only_bodies_count(office: Mailbox, tmp_path: Path) -> None:
    made = _elsewhere(office, tmp_path / "to", ending=b"\n")
    made[3].write_bytes(b"X-TUID: abc\n" + made[3].read_bytes())
    assert Bodies(office).complaint(tmp_path / "to") == ""
    made[3].write_bytes(made[3].read_bytes() + b"more\n")
    assert Bodies(office).complaint(tmp_path / "to") == "of 200 messages 1 did not arrive as they were, and 1 are others"
    for path in made[1:]:
        path.unlink()
    assert Bodies(office, every=200).complaint(tmp_path / "to") == ""
    assert Bodies(office, every=100).complaint(tmp_path / "to") == "of 2 messages 1 did not arrive as they were, and 0 are others"


# -- figures ------------------------------------------------------------------------------------------------------------------------------------


def _case(name: str = "mail", *, turns: int = 14) -> Case:
    rows = [
        Row("hostbackup", [10.0], [5.0], [90 * MIB], own=True, messages=10_000, turns=[turns - 1, turns]),
        Row("mbsync", [25.0], [8.0], [8 * MIB], note="some of it", messages=10_000, turns=[20]),
        Row("imapclient", wrong="FAILED: no"),
    ]
    targets = [Target("turns", "hostbackup", "", 15), Target("rate", "hostbackup", "", 1000), Target("faster", "hostbackup", "mbsync", 3)]
    return Case(name, "Mail", "10,000 messages", 20.0, rows, targets, True, "2026-11-28")


def test_round_trips_and_rates_are_judged_and_shown() -> None:
    judged = [(one.asked, one.shown, one.met) for one in _case().judge()]
    assert judged == [
        ("hostbackup: under 15 round trips", "14 round trips", True),
        ("hostbackup: 1,000 messages/s", "1,000 messages/s", True),
        ("hostbackup: 3× as fast as mbsync", "2.50×", False),
    ]
    assert [one.met for one in _case(turns=15).judge()] == [False, True, False]
    page = markdown(Bench(MACHINE, LINE, [_case()])).splitlines()
    assert "|  | median | compared | single runs | peak memory | CPU | messages/s | round trips |" in page
    assert "| mbsync, some of it | 25.0 s | 2.50× | 25.0 | 8 MiB | 8.00 s | 400 | 20 |" in page
    assert "| imapclient | FAILED: no |  |  |  |  |  |  |" in page
    assert "imapclient          FAILED: no\n" in plain(Bench(MACHINE, LINE, [_case()]))


def test_published_figures_keep_those_of_cases_that_were_not_run(tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text(f"# Top\n\n{BEGIN}\n\n{END}\n")
    files = Case("push", "Push", "5 files", 20.0, [Row("hostbackup", [1.0], [1.0], [MIB], own=True)])
    publish(Bench({**MACHINE, "rclone": "1.75"}, LINE, [files]), tmp_path)
    publish(Bench({**MACHINE, "dovecot": "2.3"}, LINE, [_case(turns=9)]), tmp_path)
    publish(Bench({**MACHINE, "dovecot": "2.3"}, LINE, [_case(turns=12)]), tmp_path)
    whole = Bench.read(json.loads((tmp_path / "performance.json").read_text("utf-8")))
    assert whole == Bench({**MACHINE, "rclone": "1.75", "dovecot": "2.3"}, LINE, [files, _case(turns=12)])
    assert markdown(whole).strip() in (tmp_path / "performance.md").read_text("utf-8")
    assert "mbsync" in (tmp_path / "performance.svg").read_text("utf-8")
    with pytest.raises(ValueError, match="different machines or programs do not belong in one table: dovecot, kernel"):
        publish(Bench({**MACHINE, "kernel": "7", "dovecot": "2.4"}, LINE, [_case()]), tmp_path)
    assert Bench.read(json.loads((tmp_path / "performance.json").read_text("utf-8"))) == whole


# -- all of it ----------------------------------------------------------------------------------------------------------------------------------


def test_every_mail_program_does_every_piece_of_its_work(tmp_path: Path) -> None:
    amount = ["--quick", "--messages", "10", "--delay", "0", "--only", "mail-first-pull", "mail-second-run", "mail-push"]
    words = [sys.executable, "-m", "scripts.benchmarks", *amount, "--json", str(tmp_path / "out.json"), "--keep", str(tmp_path / "work")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    bench = Bench.read(json.loads((tmp_path / "out.json").read_text("utf-8")))
    assert {case.name: [row.name for row in case.rows] for case in bench.cases} == {
        "mail-first-pull": ["hostbackup", "mbsync", "mbsync (FSync no)", "offlineimap3", "imapclient"],
        "mail-second-run": ["hostbackup", "mbsync", "offlineimap3", "imapclient"],
        "mail-push": ["hostbackup", "mbsync", "imapclient", "MULTIAPPEND"],
    }
    assert all(row.ok for case in bench.cases for row in case.rows)
    assert all(row.turns and row.turns[0] > 4 for row in bench.cases[1].rows), "TLS alone takes some"
    assert {bench.machine[name] != "" for name in ("dovecot", "mbsync", "offlineimap", "imapclient")} == {True}
    assert "rclone" not in bench.machine


def test_the_cases_of_all_suites_have_names_of_their_own() -> None:
    assert len(set(EVERY)) == len(EVERY) == sum(len(suite.cases) for suite in SUITES.values())
