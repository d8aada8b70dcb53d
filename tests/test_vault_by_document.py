"""Reads a vault by docs/vault-format.md alone. Nothing here, but for the fixture that writes the vault, knows hostbackup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# ------------------------------------------------------------ the reader


def read_bytes(root: Path, kind: str, digest: str) -> bytes:
    data = (root / kind / digest[:2] / digest).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    return data


def lines(data: bytes) -> list[dict[str, Any]]:
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def manifest(root: Path, digest: str) -> list[dict[str, Any]]:
    return lines(read_bytes(root, "manifests", digest))


def raw(record: dict[str, Any], key: str = "name") -> bytes:
    if key + "_b64" in record:
        return base64.b64decode(record[key + "_b64"])
    return str(record.get(key, "")).encode()


def newest(root: Path) -> dict[str, Any]:
    assert json.loads((root / "format.json").read_text())["version"] == 1
    path = max((root / "snapshots").glob("*.json"), key=lambda path: int(path.name.split("-")[0]))
    value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    bare = {key: item for key, item in value.items() if key != "sha256"}
    canonical = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert hashlib.sha256(canonical.encode()).hexdigest() == value["sha256"]
    assert path.name == value["id"] + ".json"
    return value


def tree(root: Path, digest: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    header, *refs = manifest(root, digest)
    assert (header["type"], header["version"]) == ("tree", 1)
    yield from below(root, refs)


def below(root: Path, refs: list[dict[str, Any]]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for ref in refs:
        if ref["type"] == "index":
            yield from below(root, manifest(root, ref["digest"]))
            continue
        folder = raw(ref, "folder")
        for record in manifest(root, ref["digest"]):
            name = raw(record)
            assert name not in (b"", b".", b"..")
            assert b"/" not in name
            yield (folder + b"/" if folder else b"") + name, record


def mailbox(root: Path, digest: str) -> Iterator[tuple[dict[str, Any], int, dict[str, Any], list[str]]]:
    header, *rest = manifest(root, digest)
    assert (header["type"], header["version"]) == ("mail", 1)
    folder: dict[str, Any] = {}
    for line in rest:
        if line["type"] == "folder":
            folder = line
            continue
        flags = {entry["uid"]: entry["flags"] for entry in manifest(root, line["flags"])} if "flags" in line else {}
        for record in manifest(root, line["messages"]):
            assert record["uid"] // 4096 == line["range"]
            yield folder, line["uidvalidity"], record, flags.get(record["uid"], [])


# ------------------------------------------------------------ a vault, written by the program

WRITE = textwrap.dedent(
    """
    import pathlib, sys
    from hostbackup.model import Observer
    from hostbackup.vault.view import build_view
    from tests.support import sample_vault as sample
    root = pathlib.Path(sys.argv[1])
    with sample.make_vault(root) as vault:
        many = {b"many/%05d.txt" % n: sample.File(b"%d" % (n % 7)) for n in range(6000)} | {b"d%04d/f" % n: sample.File(b"x") for n in range(900)}
        parts = [(sample.WEB, sample.write_tree(vault, sample.WEB, sample.SITE, sample.File(mode=0o751, mtime_ns=1_500_000_000_987_654_321))),
                 (sample.MAIL, sample.write_mail(vault, sample.MAIL, sample.MAILBOX, b"INBOX.")),
                 (sample.LOCAL, sample.write_tree(vault, sample.LOCAL, many))]
        snapshot = sample.snapshot(vault, *parts, minute=1, failures=[sample.Failure("old", "", b"caf\\xe9", "permission", "why")])
        assert build_view(vault, snapshot, None, "link", Observer()) == []
        vault.evidence.write("verify", [{"type": "proof", "part": "web/public_html"}])
        vault.evidence.write("verify", [{"type": "proof", "part": "web/public_html"}])
    """
)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("by-document") / "vault"
    here = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", WRITE, str(root)], cwd=here, check=True, timeout=120)
    return root


def test_this_reader_knows_nothing_of_the_package() -> None:
    text = Path(__file__).read_text("utf-8")
    assert re.findall(r"^(?:from|import) (?:hostbackup|tests)", text, re.MULTILINE) == []


def test_a_tree_is_read_by_the_document(vault: Path) -> None:
    part = newest(vault)["parts"]["web/public_html"]
    records = dict(tree(vault, part["root"]))
    live = {path: record for path, record in records.items() if "vanished" not in record}
    assert read_bytes(vault, "objects", live[b"index.html"]["digest"]) == b"<h1>example</h1>\n"
    assert read_bytes(vault, "objects", live["会社案内/地図.html".encode()]["digest"]) == "地図".encode()
    assert read_bytes(vault, "objects", live[b"caf\xe9/men\xfc.txt"]["digest"]) == b"latin-1 name"
    assert live[b"index.html"]["mode"] == 0o604
    assert live[b"img/logo.png"]["mtime_ns"] == 1_600_000_000_123_456_789
    assert (live[b"dangling"]["kind"], raw(live[b"dangling"], "target")) == ("link", b"../../etc/passwd")
    assert live[b"emptydir"]["kind"] == "dir"
    assert live[b"unread.txt"]["failed"] == "permission denied"
    assert records[b"gone.html"]["vanished"] == "20261125T031500Z"
    assert part["entries"] == sum(1 for record in live.values() if "digest" in record)
    assert part["bytes"] == sum(record.get("stored", record.get("size", 0)) for record in live.values() if "digest" in record)


def test_the_top_folder_of_a_tree_is_read_by_the_document(vault: Path) -> None:
    header, *_ = manifest(vault, newest(vault)["parts"]["web/public_html"]["root"])
    assert header["meta"]["root"] == {"mode": 0o751, "mtime_ns": 1_500_000_000_987_654_321}
    assert abs((vault / "latest" / "web" / "public_html").stat().st_mtime_ns - header["meta"]["root"]["mtime_ns"]) < 1_000_000_000
    header, *_ = manifest(vault, newest(vault)["parts"]["local/by-hand"]["root"])
    assert "root" not in header["meta"]


def test_a_large_tree_is_read_by_the_document(vault: Path) -> None:
    root = newest(vault)["parts"]["local/by-hand"]["root"]
    assert any(line["type"] == "index" for line in manifest(vault, root))
    files = {path: record for path, record in tree(vault, root) if record["kind"] == "file"}
    assert len(files) == 6900
    assert read_bytes(vault, "objects", files[b"many/04321.txt"]["digest"]) == b"2"


def test_a_mailbox_is_read_by_the_document(vault: Path) -> None:
    root = newest(vault)["parts"]["mail/taro@example.jp"]["root"]
    found = {(raw(folder), uidvalidity, record["uid"]): (record, flags) for folder, uidvalidity, record, flags in mailbox(vault, root)}
    assert sorted(found) == [
        (b"INBOX", 7, 1),
        (b"INBOX", 7, 2),
        (b"INBOX", 7, 3),
        (b"INBOX", 7, 4200),
        (b"INBOX.&kAFP4W4IMH8-.2026&XnQ-", 7, 2),
        (b"INBOX.Sent", 7, 1),
    ]
    record, flags = found[b"INBOX", 7, 1]
    assert flags == ["$Label1", "\\Seen"]
    assert record["internaldate"] == " 1-Jul-2026 02:44:25 +0900"
    assert read_bytes(vault, "objects", record["digest"]).startswith(b"Subject: =?ISO-2022-JP?")
    assert "vanished" in found[b"INBOX", 7, 3][0]


def test_every_live_message_and_file_stands_in_latest_where_the_document_says(vault: Path) -> None:
    expected: dict[str, str] = {}
    parts = newest(vault)["parts"]
    for folder, uidvalidity, record, _ in mailbox(vault, parts["mail/taro@example.jp"]["root"]):
        if "vanished" not in record:
            below = raw(folder, "maildir")
            place = "mail/taro@example.jp/" + (below.decode() + "/" if below else "") + "cur/"
            expected[place + f"V{uidvalidity}U{record['uid']}.{record['digest'][:12]}"] = record["digest"]
    for part in ("web/public_html", "local/by-hand"):
        for path, record in tree(vault, parts[part]["root"]):
            if record["kind"] == "file" and "digest" in record and "vanished" not in record:
                expected[f"{part}/{path.decode('utf-8', 'surrogateescape')}"] = record["digest"]
    shown: dict[str, str] = {}
    for line in (vault / "latest" / "SHA256SUMS").read_text("utf-8", "surrogateescape").split("\n")[:-1]:
        name = re.sub(r"(cur/)-?\d+\.(.*):2,[A-Za-z]*$", r"\1\2", line[66:])
        if not name.endswith(("dovecot-keywords", "subscriptions")):
            shown[name] = line[:64]
    assert shown == expected


def test_the_failures_of_a_run_are_read_by_the_document(vault: Path) -> None:
    [failure] = newest(vault)["failures"]
    assert raw(failure) == b"caf\xe9"
    assert failure["code"] == "permission"


def test_the_chain_of_evidence_is_read_by_the_document(vault: Path) -> None:
    previous_name = previous = ""
    files = sorted((vault / "evidence").iterdir())
    assert len(files) == 2
    for path in files:
        header, *statements = lines(path.read_bytes())
        assert (header["previous_name"], header["previous"]) == (previous_name, previous)
        assert statements[0]["type"] == "proof"
        previous_name, previous = path.name, hashlib.sha256(path.read_bytes()).hexdigest()
