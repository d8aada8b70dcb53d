"""What one writes oneself over IMAP, for comparison: imapclient in a loop, and MULTIAPPEND on one connection.

imap_loop.py pull PORT USER PASSWORD AUTHORITY FOLDER               200 messages a FETCH, a file each; later runs fetch what is new
imap_loop.py append PORT USER PASSWORD AUTHORITY MAILDIR --every N  one APPEND a message, of one message in N
imap_loop.py multiappend PORT USER PASSWORD AUTHORITY MAILDIR       100 messages an APPEND (RFC 3502, LITERAL+ of RFC 7888)
"""

from __future__ import annotations

import argparse
import datetime
import imaplib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imapclient import IMAPClient

NAME = "localhost"  # in the server's certificate
BATCH = 200  # messages a FETCH
TOGETHER = 100  # messages an APPEND
FLAGS = {"S": "\\Seen", "R": "\\Answered", "F": "\\Flagged", "D": "\\Draft", "T": "\\Deleted"}


def pull(told: argparse.Namespace) -> None:
    with _client(told) as client:
        for name in [name for attributes, _, name in client.list_folders() if b"\\Noselect" not in attributes]:
            folder = told.folder / quote(str(name), safe="")
            folder.mkdir(parents=True, exist_ok=True)
            client.select_folder(name, readonly=True)
            here = {int(path.stem) for path in folder.iterdir()}
            missing = [uid for uid in client.search("ALL") if uid not in here]
            for begin in range(0, len(missing), BATCH):
                for uid, found in client.fetch(missing[begin : begin + BATCH], ["BODY.PEEK[]", "FLAGS", "INTERNALDATE"]).items():
                    (folder / f"{uid}.eml").write_bytes(found[b"BODY[]"])


def append(told: argparse.Namespace) -> None:
    with _client(told) as client:
        client.folder_encode = False
        made = set()
        paths = [path for number, path in enumerate(sorted(told.folder.rglob("*:2,*"))) if number % told.every == 0]
        for path in paths:
            folder = _folder(path, told.folder)
            if folder not in made:
                _ = folder == "INBOX" or client.create_folder(folder.encode())
                made.add(folder)
            when = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
            client.append(folder.encode(), _crlf(path), _flags(path), when)


def multiappend(told: argparse.Namespace) -> None:
    with imaplib.IMAP4_SSL(NAME, told.port, ssl_context=_context(told)) as line:
        line.login(told.user, told.password)
        letters: dict[str, list[Path]] = {}
        for path in sorted(told.folder.rglob("*:2,*")):
            letters.setdefault(_folder(path, told.folder), []).append(path)
        for folder, paths in letters.items():
            if folder != "INBOX":
                line.create(f'"{folder}"')
            for begin in range(0, len(paths), TOGETHER):
                line.send(b"".join(_command(folder, paths[begin : begin + TOGETHER])))
                answer = line.readline()
                while answer.startswith(b"*"):
                    answer = line.readline()
                if not answer.startswith(b"LOOP OK"):
                    raise SystemExit(answer.decode("utf-8", "replace"))


def _command(folder: str, paths: list[Path]) -> Iterator[bytes]:
    yield f'LOOP APPEND "{folder}"'.encode()
    for path in paths:
        data, when = _crlf(path), datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
        yield f' ({" ".join(_flags(path))}) "{when:%d-%b-%Y %H:%M:%S +0000}" {{{len(data)}+}}\r\n'.encode()
        yield data
    yield b"\r\n"


def _folder(path: Path, root: Path) -> str:
    """The wire name of the folder that a Maildir++ keeps this file for."""
    below = path.relative_to(root).parts[0]
    return below.removeprefix(".").replace(".", "/") if below.startswith(".") else "INBOX"


def _flags(path: Path) -> list[str]:
    return [FLAGS[letter] for letter in path.name.rpartition(":2,")[2]]


def _crlf(path: Path) -> bytes:
    return path.read_bytes().replace(b"\n", b"\r\n")


def _context(told: argparse.Namespace) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=told.authority)


def _client(told: argparse.Namespace) -> Any:
    client = IMAPClient(NAME, told.port, ssl_context=_context(told))
    client.login(told.user, told.password)
    return client


def main() -> None:
    parser = argparse.ArgumentParser(description="Loops over IMAP to compare with.")
    parser.add_argument("what", choices=["pull", "append", "multiappend"])
    parser.add_argument("port", type=int)
    parser.add_argument("user")
    parser.add_argument("password")
    parser.add_argument("authority")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1)
    told = parser.parse_args()
    {"pull": pull, "append": append, "multiappend": multiappend}[told.what](told)


if __name__ == "__main__":
    main()
