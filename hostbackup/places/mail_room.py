"""What a server says beforehand of how much it takes: the size of one message (APPENDLIMIT, RFC 7889), and room for all (QUOTA, RFC 9208)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from hostbackup.protocols.imap import lexer
from hostbackup.protocols.imap.channel import mailbox
from hostbackup.protocols.imap.framer import Data, Response
from hostbackup.protocols.imap.session import ImapSession

_STORAGE_UNIT = 1024  # bytes, RFC 9208 §5.1


@dataclass(frozen=True, slots=True)
class Quota:
    """One resource of a quota root: "bytes" or "messages", used and at most."""

    root: bytes
    resource: str
    used: int
    limit: int

    @property
    def free(self) -> int:
        return max(0, self.limit - self.used)


@dataclass(slots=True)
class Limits:
    """Of each folder the largest message in bytes (a folder that is not in it: not known), and its quotas."""

    largest: dict[bytes, int] = field(default_factory=dict)
    quotas: dict[bytes, list[Quota]] = field(default_factory=dict)


def ask(session: ImapSession, folders: Sequence[bytes]) -> Limits:
    """Of these folders, which are there. Costs few round trips however many they are. Raises ConnectionFailed."""
    limits = Limits()
    general = next((one.partition("=")[2] for one in session.capabilities if one.startswith("APPENDLIMIT=")), "")
    if general.isdigit():
        limits.largest = dict.fromkeys(folders, int(general))
    elif session.offers("APPENDLIMIT"):
        _ask_sizes(session, folders, limits)
    if session.offers("QUOTA") or any(one.startswith("QUOTA=") for one in session.capabilities):
        _ask_quotas(session, folders, limits)
    return limits


def _ask_sizes(session: ImapSession, folders: Sequence[bytes], limits: Limits) -> None:
    def take(response: Response) -> None:
        if isinstance(response, Data) and response.kind == "STATUS" and len(response.values) > 1:
            pairs = response.values[1]
            if isinstance(pairs, list) and len(pairs) == 2 and lexer.word(pairs[0]).upper() == "APPENDLIMIT" and pairs[1] is not None:
                limits.largest[lexer.string(response.values[0])] = lexer.number(pairs[1])

    _run_all(session, [(b"STATUS", name, b"(APPENDLIMIT)") for name in folders], take)


def _ask_quotas(session: ImapSession, folders: Sequence[bytes], limits: Limits) -> None:
    roots: dict[bytes, set[bytes]] = defaultdict(set)
    told: dict[tuple[bytes, str], Quota] = {}

    def take(response: Response) -> None:
        if not isinstance(response, Data) or not response.values:
            return
        name = lexer.string(response.values[0])
        if response.kind == "QUOTAROOT":
            roots[name].update(lexer.string(value) for value in response.values[1:])
        elif response.kind == "QUOTA" and len(response.values) > 1 and isinstance(response.values[1], list):
            triple = response.values[1]
            for at in range(0, len(triple) - 2, 3):
                resource, used, limit = lexer.word(triple[at]).upper(), lexer.number(triple[at + 1]), lexer.number(triple[at + 2])
                if resource == "STORAGE":
                    told[name, "bytes"] = Quota(name, "bytes", used * _STORAGE_UNIT, limit * _STORAGE_UNIT)
                elif resource == "MESSAGE":
                    told[name, "messages"] = Quota(name, "messages", used, limit)

    _run_all(session, [(b"GETQUOTAROOT", name) for name in folders], take)
    for folder, names in roots.items():
        limits.quotas[folder] = [quota for (root, _), quota in sorted(told.items()) if root in names]


def _run_all(session: ImapSession, commands: Sequence[tuple[bytes, ...]], take: object) -> None:
    """Commands whose second word is a mailbox, several in flight. A server that refuses one, or answers what cannot be read, has told nothing."""
    assert callable(take)

    def careful(response: Response) -> None:
        try:
            take(response)
        except (ValueError, IndexError):
            return

    channel = session.channel
    started: list[bytes] = []
    for verb, name, *rest in commands:
        if not channel.at_once(mailbox(name)) or len(started) >= 100:
            for tag in started:
                channel.finish(tag, careful)
            started = []
        started.append(channel.start(verb, mailbox(name), *rest))
    for tag in started:
        channel.finish(tag, careful)
