"""The bucket half of the benchmark: every request counted once, nothing taken for copied that does not come back, every program at work."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from scripts.benchmarks import corpus
from scripts.benchmarks.copy_cases import COPY_CASES
from scripts.benchmarks.copy_contenders import Same
from scripts.benchmarks.corpus import Shape
from scripts.benchmarks.relay import counting
from scripts.benchmarks.results import MIB, Bench, Case, Row, Target
from scripts.benchmarks.tables import markdown, plain
from scripts.benchmarks.traffic import LONGEST_HEAD, Requests, Traffic
from scripts.benchmarks.trial import PreparationFailed

ROOT = Path(__file__).parent.parent
MACHINE = {"cores": 2, "cpu": "some", "memory_mb": 4000, "system": "Debian", "kernel": "6", "file_system": "ext4", "python": "3.11"}

# -- requests -----------------------------------------------------------------------------------------------------------------------------------

BODY = b"GET /not-a-request HTTP/1.1\r\n\r\n"
PUT = b"PUT /b/key HTTP/1.1\r\nHost: x\r\ncontent-LENGTH:  %d\r\nx-length: 7\r\n\r\n%s" % (len(BODY), BODY)
CHUNKED = (
    b"POST /b?uploads HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1f;a=b\r\n%s\r\n2\r\n\r\n\r\n0\r\nX-Trailer: DELETE / HTTP/1.1\r\n\r\n" % BODY
)
EMPTY = b"PUT /b/empty HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
GET = b"GET /b/key HTTP/1.1\r\nHost: x\r\n\r\n"
STREAM = PUT + GET + CHUNKED + EMPTY + b"HEAD / HTTP/1.1\r\n\r\n" + CHUNKED + GET


def _counted(*parts: bytes) -> Counter[str]:
    found: Counter[str] = Counter()
    requests = Requests(found)
    for part in parts:
        requests.feed(memoryview(part))
    return found


def test_each_request_on_a_connection_is_counted_once_however_the_bytes_are_cut() -> None:
    assert len(BODY) == 0x1F
    wanted = {"PUT": 2, "GET": 2, "POST": 2, "HEAD": 1}
    assert _counted(STREAM) == wanted
    assert _counted(*(STREAM[place : place + 1] for place in range(len(STREAM)))) == wanted
    for place in range(1, len(STREAM)):
        assert _counted(STREAM[:place], STREAM[place:]) == wanted, place


def test_what_is_not_http_is_told_and_not_counted() -> None:
    with pytest.raises(ValueError, match="a request begins otherwise"):
        _counted(b"SSH-2.0-OpenSSH\r\n\r\n")
    with pytest.raises(ValueError, match="a head without an end"):
        _counted(b"GET / HTTP/1.1\r\nX: ", b"y" * LONGEST_HEAD)


def test_traffic_since_a_moment_is_what_came_after_it() -> None:
    before, now = Traffic(2, 100, 1000, {"GET": 2, "PUT": 1}), Traffic(5, 150, 1500, {"GET": 2, "PUT": 4, "HEAD": 1})
    assert now.since(before) == Traffic(3, 50, 500, {"PUT": 3, "HEAD": 1})


class _Counts(BaseHTTPRequestHandler):
    """Answers everything with its own length, and keeps the connection."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[Counter[str]] = Counter()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen[self.command] += 1
        told = str(len(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_PUT = do_GET = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Iterator[int]:
    _Counts.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Counts) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_relay_counts_the_requests_and_bytes_of_all_its_connections_and_changes_none(site: int) -> None:
    big = b"z" * 3_000_000
    with counting(site, 0, http=True) as running:
        before = running.traffic()
        for _ in range(3):
            line = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
            for method, body in (("PUT", big), ("GET", None), ("PUT", b"small"), ("DELETE", None)):
                line.request(method, "/key", body)
                assert line.getresponse().read() == str(len(body or b"")).encode()
            line.close()
        found = running.traffic().since(before)
    assert found.methods == _Counts.seen == {"PUT": 6, "GET": 3, "DELETE": 3}
    assert 3 * len(big) < found.up < 3 * len(big) + 3000
    assert 12 * 40 < found.down < 12 * 400


# -- what comes back ----------------------------------------------------------------------------------------------------------------------------


def test_a_copy_counts_only_if_every_file_comes_back_as_it_was(tmp_path: Path) -> None:
    tree = corpus.tree(tmp_path / "tree", Shape(30))
    back = tmp_path / "back"
    subprocess.run(["cp", "-a", str(tree.path), str(back)], check=True)
    assert Same(tree).complaint(back) == ""
    assert Same(tree, lambda told: told / "back").complaint(tmp_path) == ""
    one, two, *_ = (path for path in sorted(back.rglob("*")) if path.is_file() and path.stat().st_size)
    one.write_bytes(bytes(len(one.read_bytes())))  # the same size
    two.rename(two.with_name("renamed"))
    assert Same(tree).complaint(back) == "of 30 files 2 did not come back as they were, and 1 are others"
    assert Same(tree).complaint(tmp_path / "nowhere") == "of 30 files 30 did not come back as they were, and 0 are others"


def test_a_copy_that_cannot_be_fetched_is_none(tmp_path: Path) -> None:
    def fetch(_: Path) -> Path:
        raise PreparationFailed("restic ended with 1: no")

    assert Same(corpus.tree(tmp_path / "tree", Shape(3)), fetch).complaint(tmp_path) == "it could not be fetched back: restic ended with 1: no"


def test_several_large_files_are_the_same_every_time_and_not_alike(tmp_path: Path) -> None:
    one, two = (corpus.several(tmp_path / name, 3, 1_500_000) for name in ("one", "two"))
    assert corpus.differences(one.path, two.path) == (0, 0)
    assert (one.files, one.size) == corpus.count(one.path) == (3, 4_500_000)
    assert len({path.read_bytes() for path in one.path.iterdir()}) == 3


# -- figures ------------------------------------------------------------------------------------------------------------------------------------


def _case(*, puts: int = 4, seconds: float = 0.8) -> Case:
    rows = [
        Row("hostbackup", [seconds], [0.5], [90 * MIB], own=True, requests=[{"PUT": 2}, {"PUT": puts, "GET": 5}], up=[100_000], down=[2_000_000]),
        Row("restic", [1.6], [0.8], [80 * MIB], requests=[{"HEAD": 1500}], up=[2_000_000_000], down=[150_000_000]),
        Row("aws s3 sync", wrong="FAILED: no"),
    ]
    targets = [Target("requests", "hostbackup", "", 10), Target("time", "hostbackup", "", 1), Target("faster", "hostbackup", "restic", 1)]
    return Case("copies-again", "Again", "5 files", 0, rows, targets, True, "2026-11-29")


def test_requests_bytes_and_seconds_are_judged_and_shown() -> None:
    judged = [(one.asked, one.shown, one.met) for one in _case().judge()]
    assert judged == [
        ("hostbackup: under 10 requests", "9 requests", True),
        ("hostbackup: under 1 s", "0.80 s", True),
        ("hostbackup: faster than restic", "2.00×", True),
    ]
    assert [one.met for one in _case(puts=5, seconds=1.0).judge()] == [False, False, True]
    bench = Bench(MACHINE, {"0": {"round_trip_ms": 0.1, "mb_per_second": 900}, "20": {"round_trip_ms": 20.4, "mb_per_second": 1000}}, [_case()])
    page = markdown(bench)
    assert "The relay: 20.4 ms round trip, 1,000 MB/s, where 20 ms were asked for; 0.1 ms round trip, 900 MB/s, where 0 ms were asked for." in page
    assert "|  | median | compared | single runs | peak memory | CPU | requests | up | down |" in page
    assert "| hostbackup | 0.80 s | 1.00× | 0.80 | 90 MiB | 0.50 s | 9 | 0.10 MB | 2.0 MB |" in page
    assert "| restic | 1.60 s | 2.00× | 1.60 | 80 MiB | 0.80 s | 1,500 | 2,000 MB | 150 MB |" in page
    assert "5 files; no delay" in plain(bench)
    assert Bench.read(json.loads(json.dumps(bench.document()))) == bench


# -- all of it ----------------------------------------------------------------------------------------------------------------------------------


def test_copies_run_from_server_to_table(tmp_path: Path) -> None:
    amount = ["--quick", "--copy-files", "12", "--with", "hostbackup", "rclone"]
    cases = ["copies-again", "copies-restore-moto"]
    words = [sys.executable, "-m", "scripts.benchmarks", *amount, "--only", *cases, "--json", str(tmp_path / "out.json"), "--keep", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    bench = Bench.read(json.loads((tmp_path / "out.json").read_text("utf-8")))
    assert [case.name for case in bench.cases] == cases
    rows = {case.name: {row.name: row for row in case.rows} for case in bench.cases}
    assert all(set(found) == {"hostbackup", "rclone"} and all(row.ok for row in found.values()) for found in rows.values())
    again, back = (rows[name] for name in cases)
    assert all(sum(row.requests[0].values()) > 0 for found in rows.values() for row in found.values())
    assert again["rclone"].requests[0].keys().isdisjoint({"PUT", "POST"})
    assert all(row.down[0] > 12 * 1000 for row in back.values())
    assert all(bench.machine[name] for name in ("rclone", "moto", "boto3"))
    assert not (tmp_path / "results").exists(), "what single runs left is gone"


def test_every_case_is_there_for_both_servers_but_the_large_one() -> None:
    small = {"copies-first", "copies-again", "copies-restore"}
    assert set(COPY_CASES) == small | {f"{name}-moto" for name in small} | {"copies-large"}
