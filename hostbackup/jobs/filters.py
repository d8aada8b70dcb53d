"""The filters of mailboxes as parts of their own, `sieve/USER`: when they belong to a run, how they are dated, and what in them needs a hand."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hostbackup.accounts import Account
from hostbackup.errors import NotOffered
from hostbackup.jobs.accounts_pool import AccountWork
from hostbackup.jobs.context import Job, push_journal
from hostbackup.jobs.keys import spoken, stamp
from hostbackup.jobs.part_work import PartWork
from hostbackup.jobs.result import Result
from hostbackup.model import Entry, Kind, Part, Relaying, Stored, name_from_json, name_json

if TYPE_CHECKING:
    from hostbackup.places.digests import Reader
    from hostbackup.places.sieve import Dated
    from hostbackup.vault.tree import TreeRoot

_SILENT = "filters"  # in state/
_SILENT_FOR = datetime.timedelta(hours=12)  # a nightly run asks each time
_EARLY_NS = 3_000_000_000
# RFC 5228 §2.3, §2.4.2: comments, quoted strings and `text:` blocks are told apart before anything else is looked for.
# One that does not end takes all the rest: else each of many would be searched through to its end.
_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*|/\*.*?(?:\*/|\Z))|(?P<block>\btext:[ \t]*(?:\#[^\n]*|\r?)\n.*?(?:^\.\r?$|\Z))
    |"(?P<string>(?:[^"\\]|\\.)*)(?:"|\Z)|(?P<word>:?[A-Za-z_]\w*)|(?P<end>[;{}])""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


def recall_silence(job: Job) -> None:
    """Has ports left alone that a firewall kept silent for an earlier run: every run would wait seconds for them. For some hours, and told."""
    known = (job.vault.state.read(_SILENT) or {}).get("silent", {})
    fresh = {place: since for place, since in known.items() if since > stamp(job.started - _SILENT_FOR)}
    for place, since in fresh.items():
        job.observer.note(f"filters: {place} is not asked, as nobody answered there {spoken(since)}; `check` asks at once")
    job.connections.filter_logins.silent = fresh


def remember_silence(job: Job) -> None:
    """Notes the ports that nobody answered, for `recall_silence`."""
    logins = job.connections.filter_logins
    if new := dict.fromkeys(logins.silent_now(), job.now):
        job.vault.state.write(_SILENT, {"silent": {**logins.silent, **new}})


def follow(work: AccountWork, filters: Callable[[PartWork], None], *, optional: bool) -> None:
    """Has an account's `filters` worked on after its mailbox, within that one's progress; `optional` as in `PartWork`.

    Where the mailbox could not be worked on they count as not offered: a refused password must not be tried again, nor another machine asked.
    """

    def after_mailbox() -> None:
        if work.error is not None:
            raise NotOffered("not asked for, as its mailbox could not be worked on")
        filters(then)

    work.then = then = PartWork(Part("sieve", work.part.name), work.side, Result(_Within(work.result.observer)), after_mailbox, optional)


class _Within(Relaying):
    """What is done in moments, beside work that shows its own progress: phases are notes, and nothing is counted."""

    def phase(self, title: str, entries: int | None = None, size: int | None = None) -> None:
        self._listener.note(title)

    def advance(self, entries: int = 0, size: int = 0) -> None:
        self._listener.advance()  # where those leave whose run has ended


def first_seen(previous: TreeRoot | None, started: datetime.datetime) -> Dated:
    """Dates a script by the start of the run that first found these bytes. A little earlier, as younger files count as still changing."""
    from hostbackup.places.sieve import of_link

    def stands_for(record: Stored[Entry]) -> str:
        return of_link(record.item.target) if record.item.kind is Kind.LINK else record.digest

    known = {record.item.path: (stands_for(record), record.item.mtime_ns) for record in previous.walk()} if previous else {}
    now = int(started.timestamp()) * 1_000_000_000 - _EARLY_NS

    def dated(path: bytes, digest: str) -> int:
        before = known.get(path)
        return before[1] if before is not None and before[0] == digest else now

    return dated


def filters_target(job: Job, account: Account) -> str:
    """What a push's journal is called after: the server and the user."""
    section = job.connections.imap_section("new")
    return f"{section.host}:{section.sieve_port}:{job.profile.new_account_for(account).user}"


def were_pushed(job: Job, account: Account) -> bool:
    """Whether filters of this account ever came to the new server: then it offers them, and what it holds is to be proven."""
    return job.vault.state.journal(push_journal(Part("sieve", account.user), filters_target(job, account))).begun


def names_from(meta: Mapping[str, Any]) -> dict[bytes, bytes]:
    """What the scripts are called whose files have a cut name, by path, out of a manifest's `meta`."""
    return {name_from_json(row): name_from_json(row, "script") for row in meta.get("names", ())}


def names_meta(names: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The same for a manifest's `meta`."""
    return {"names": [{**name_json(path), **name_json(names[path], "script")} for path in sorted(names)]} if names else {}


def contents(source: TreeRoot) -> dict[bytes, str]:
    """The digest of every script, by path."""
    return {record.item.path: record.digest for record in source.walk() if record.digest}


def to_adapt(source: TreeRoot, reader: Reader, folders: Iterable[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Folders that scripts file mail into and that are called otherwise at the new server. `folders`: rows of the folder map, as in `--json`.

    Scripts are pushed as they are: what they name is for a person to adapt.
    """
    from hostbackup.places.sieve import script_name
    from hostbackup.protocols.imap.names import display

    renamed = {}
    for row in folders:
        old, new = display(name_from_json(row, "old")), display(name_from_json(row, "new"))
        if old != new:
            renamed[old] = new
    if not renamed:
        return
    names = names_from(source.meta)
    for record in source.walk():
        for folder in named_folders(_text(record, reader)):
            if folder in renamed:
                script = script_name(record.item.path, names).decode("utf-8", "backslashreplace")
                yield {"part": source.part.id, "script": script, "folder": folder, "becomes": renamed[folder]}


def _text(record: Stored[Entry], reader: Reader) -> str:
    if record.item.kind is not Kind.FILE or not record.digest:
        return ""
    with reader(record.digest) as stream:
        return bytes(stream.read()).decode("utf-8", "replace")


def named_folders(script: str) -> list[str]:
    """The folders that a script's `fileinto` commands (RFC 5228 §4.1) name, each once. Those made of variables are given as they stand."""
    found: dict[str, None] = {}
    filing = False
    last = ""
    for token in _TOKEN.finditer(script):
        if token["word"] is not None:
            filing = filing or token["word"].lower() == "fileinto"
        elif token["string"] is not None:
            last = re.sub(r"\\(.)", r"\1", token["string"])
        elif token["end"] is not None:
            if filing and last:
                found[last] = None  # the folder is the last of the command's arguments
            filing, last = False, ""
    return list(found)
