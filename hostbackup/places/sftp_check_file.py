"""Digests of a tree's files computed by its SFTP server, where it knows the extension check-file: hundreds of files at a time, no shell needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hostbackup.errors import ProtocolBroken
from hostbackup.model import Claim, Entry
from hostbackup.places.digests import Told
from hostbackup.places.sftp_tree import Lines, Tree
from hostbackup.places.shell import SLOWEST
from hostbackup.protocols.sftp.check_file import SIZES, WHOLE_LIMIT, check_file, parse
from hostbackup.protocols.sftp.client import Connection, Steps, ask_one
from hostbackup.protocols.sftp.pump import Work

BLOCK = 1 << 30  # bytes to one digest of a file that is too large for one digest in all
_FIRST = 8  # files that show whether the server knows the extension
_TRIES = 2  # over lines that are cut, before a file is left to other means

_Claim = Claim[Entry]


@dataclass(slots=True)
class _Asking:
    """The question for one file. Begun anew after a cut line, it gives up: perhaps the question is what cut it."""

    claim: _Claim
    path: bytes
    algorithms: Sequence[bytes]
    block: int
    tries: int

    def begin(self, _: Connection) -> Steps[Told]:
        self.tries -= 1
        blocks = max(1, -(-self.claim.size // self.block)) if self.block else 1
        if self.tries < 0:
            return Told(self.claim)
        value = yield from ask_one(check_file(self.path, self.algorithms, block=self.block))
        checked = parse(value, self.algorithms, blocks=blocks) if isinstance(value, memoryview) else None
        return Told(self.claim) if checked is None else Told(self.claim, *checked, self.block)


class CheckFile:
    """What one server can do for digests over SFTP: found out once.

    `weak` offers algorithms below SHA-256 too. `blocks` lets files above WHOLE_LIMIT be asked for, in digests of blocks.

    Any server that does not call itself OpenSSH is asked: ProFTPD does not announce the extension in version 3. It knows it where one of the
    first few files gets a digest.
    """

    def __init__(self, lines: Lines, tree: Tree, *, weak: bool, blocks: bool) -> None:
        self._lines = lines
        self._tree = tree
        self._algorithms = tuple(SIZES)[: None if weak else 1]
        self._blocks = blocks
        self.known: bool | None = None  # whether the server knows the extension, once it was asked

    def digests(self, claims: Iterable[_Claim]) -> Iterator[Told]:
        """Exactly one a claim, empty where the server told nothing of use. Raises as `Lines.carry_out`."""
        left = list(claims)
        if self.known is None and left:
            self.known = None if "OpenSSH" not in self._lines.session().server_version else False
        usable: list[_Claim] = []
        for claim in left:
            # An empty file has no block to hash: servers refuse it.
            fits = claim.size > 0 and (claim.size <= WHOLE_LIMIT or self._blocks)
            if self.known is False or not fits:
                yield Told(claim)
            else:
                usable.append(claim)
        if self.known is None and usable:
            usable.sort(key=lambda claim: claim.size)
            first = list(self._ask(usable[:_FIRST]))
            self.known = any(told.digests for told in first)
            yield from first
            usable = usable[_FIRST:]
        yield from self._ask(usable) if self.known else map(Told, usable)

    def _ask(self, claims: Sequence[_Claim]) -> Iterator[Told]:
        """Small files many at a time on one channel: each answer shows that the server is alive. Large ones one by one, with time for their bytes."""
        stall = self._lines.limits.stall
        small = stall * SLOWEST / 4
        waiting = {id(claim): claim for claim in claims}
        try:
            few = [claim for claim in claims if claim.size <= small]
            for told in self._run(few, stall) if few else ():
                del waiting[id(told.claim)]
                yield told
            for claim in claims:
                if claim.size > small:
                    for told in self._run([claim], stall + claim.size / SLOWEST):
                        del waiting[id(told.claim)]
                        yield told
        except ProtocolBroken:
            self.known = False  # whatever it sent, it was no answer
            yield from map(Told, waiting.values())

    def _run(self, claims: Iterable[_Claim], stall: float) -> Iterator[Told]:
        left = iter(claims)
        tries = _TRIES if stall == self._lines.limits.stall else 1

        def source() -> Work[Told] | None:
            claim = next(left, None)
            if claim is None:
                return None
            block = BLOCK if claim.size > WHOLE_LIMIT else 0
            asking = _Asking(claim, self._tree.full(claim.item.path), self._algorithms, block, tries)
            return Work(asking.begin)

        yield from self._lines.carry_out(source, 1, stall=stall)
