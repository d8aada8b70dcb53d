"""One APPEND on its way, and what its answer says of the messages in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from hostbackup.model import Message
from hostbackup.places.mail_outgoing import Wanted
from hostbackup.protocols.imap import lexer, sets
from hostbackup.protocols.imap.framer import Answer

PIECES = 8  # a refused command is sent again in so many


@dataclass(slots=True, eq=False)
class Dispatched:
    wanted: Wanted
    item: Message  # as it was sent


@dataclass(slots=True, eq=False)
class Command:
    """An APPEND in flight. `ended`: its last bytes are on their way; before that no server can have carried it out."""

    tag: bytes
    folder: bytes
    most: int  # messages that it may hold
    sent: list[Dispatched] = field(default_factory=list)
    size: int = 0
    ended: bool = False
    pauses: int = 0  # that had been made when it was begun
    put_off: bool = False  # it may be sent again as it was


def pieces(wanted: list[Wanted]) -> Iterator[deque[Wanted]]:
    """The parts in which a refused command is sent again."""
    size = -(-len(wanted) // PIECES)
    for at in range(0, len(wanted), size):
        yield deque(wanted[at : at + size])


def appended_uids(answer: Answer, count: int) -> tuple[int, list[int]]:
    """UIDVALIDITY and the UIDs of `count` messages in the order they were sent (RFC 4315 §3). Zeros where the server does not tell them, or
    tells another number of them."""
    if answer.code == "APPENDUID" and len(answer.args) == 2:
        try:
            uidvalidity, uids = lexer.number(answer.args[0]), sets.expand(lexer.string(answer.args[1]), count)
        except ValueError:
            return 0, [0] * count
        if len(set(uids)) == count and uidvalidity and 0 not in uids:
            return uidvalidity, uids
    return 0, [0] * count
