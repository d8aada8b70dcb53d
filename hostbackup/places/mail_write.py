"""Appending many messages: many in one command (MULTIAPPEND, RFC 3502) and several commands in flight, where the server takes literals without
asking (LITERAL+, RFC 7888); one by one where it does not. Bytes go as they are.

Nothing on the target is ever deleted. A message whose answer never came is told as in doubt and not repeated here. A command that is refused
appended none of its messages: it is sent again in pieces until the one that the server means is alone. That it appended none is seen by the
folder's UIDNEXT.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

from hostbackup.errors import ConnectionFailed, HostbackupError, LineCut, ProtocolBroken
from hostbackup.model import Failure, Message, Write, Written
from hostbackup.places import mail_dates
from hostbackup.places.mail_command import Command, Dispatched, appended_uids, pieces
from hostbackup.places.mail_line import Line
from hostbackup.places.mail_outgoing import WHOLE, TargetFolder, Unfit, Wanted, checked
from hostbackup.places.mail_prepare import open_for_writing
from hostbackup.places.mail_refusals import HINTS, SECONDS_AT_MOST, Reach, code_of, reach, reason_of
from hostbackup.protocols.imap.channel import mailbox
from hostbackup.protocols.imap.framer import Answer, Tagged, Untagged
from hostbackup.protocols.imap.session import ImapSession
from hostbackup.protocols.imap.throttle import wait_told
from hostbackup.protocols.imap.wire import plain

WINDOW_COMMANDS = 64
WINDOW_MESSAGES = 500  # in flight; below that, another command may begin
WINDOW_BYTES = 16 * 1024 * 1024
BATCH_MESSAGES = 400
BATCH_BYTES = 8 * 1024 * 1024
FIRST_BATCH = 25  # messages; each command may hold twice as many as the one before, so that a server that takes none costs little
_FULL = 3  # messages in a row refused one by one for want of room, or put off for good, after which nothing more is sent
_WAITS = 5  # times in a row that the server may put off what is sent to it
_CHUNK = 256 * 1024
_LATE = 1.0  # seconds to look for answers on a line that was cut
FailureFor = Callable[[bytes, str, str, str], Failure]  # label, code, reason, hint


class Appender:
    """Appends over one line. `failure` makes the place's Failure; `losses` counts (folder, flag or date) that the target does not keep."""

    def __init__(self, line: Line, failure: FailureFor, losses: Counter[tuple[bytes, str]], pause: Callable[[float], None]) -> None:
        self._line = line
        self._failure = failure
        self._losses = losses
        self._pause = pause
        self._folders: dict[bytes, TargetFolder] = {}
        self._window: deque[Command] = deque()
        self._again: deque[deque[Wanted]] = deque()  # each to be sent apart from the others, before anything new
        self._next: Wanted | None = None  # pulled, and no byte of it sent
        self._halves: list[Written[Message]] = []  # given up in mid-message by this side
        self._most = FIRST_BATCH
        self._multi = True  # until a server that offers MULTIAPPEND turns out not to know it
        self._proven = False  # whether it took several at once
        self._tight = False  # room is getting scarce: one command at a time
        self._no_room = 0
        self._full = ""  # the server's words once it has no room, for messages of this many bytes
        self._full_from = 0
        self._waits = 0
        self._pauses = 0
        self._put_off = 0
        self._closed = ""  # the server's words once it takes nothing for now
        self._suspects: list[Command] = []  # refused, and to be looked into before anything more is sent

    def run(self, items: Iterable[Write[Message]]) -> Iterator[Written[Message]]:
        """One outcome an item, as they come. Raises ConnectionFailed where the line is lost for good."""
        source = iter(items)
        try:
            while True:
                session = None
                try:
                    session = self._line.session()
                    yield from self._work(session, source)
                    return
                except (LineCut, ProtocolBroken) as error:
                    yield from self._recover(error, session)
        finally:
            if self._window:
                self._line.drop()

    def _work(self, session: ImapSession, source: Iterator[Write[Message]]) -> Iterator[Written[Message]]:
        while True:
            if self._suspects:
                # What else is under way must have been answered, so that the folder's counter can be understood.
                yield from self._receive(session) if self._window else self._look_into(session)
                continue
            if self._is_full():
                # Half of a full window is taken in before it is filled again: fewer and larger packets both ways.
                for _ in range(max(1, len(self._window) // 2)):
                    yield from self._receive(session)
                continue
            piece = self._again.popleft() if self._again else None
            wanted = piece.popleft() if piece else self._pull(source)
            if wanted is not None:
                try:
                    yield from self._send(session, wanted, piece, source)
                finally:
                    if piece:
                        self._again.appendleft(piece)
            elif self._window:
                yield from self._receive(session)
            else:
                return

    def _pull(self, source: Iterator[Write[Message]]) -> Wanted | None:
        if self._next is not None:
            wanted, self._next = self._next, None
            return wanted
        write = next(source, None)
        return None if write is None else Wanted.of(write)

    def _is_full(self) -> bool:
        if len(self._window) >= (1 if self._tight else WINDOW_COMMANDS):
            return True
        return sum(len(one.sent) for one in self._window) >= WINDOW_MESSAGES or sum(one.size for one in self._window) >= WINDOW_BYTES

    # -- sending ------------------------------------------------------------------------------------------------------------------------

    def _send(
        self, session: ImapSession, wanted: Wanted, piece: deque[Wanted] | None, source: Iterator[Write[Message]]
    ) -> Iterator[Written[Message]]:
        """Sends one APPEND (RFC 3501 §6.3.11, RFC 3502) that begins with this message and holds as many more as belong in it."""
        command: Command | None = None
        while True:
            yield from self._make_way(session, wanted)
            prepared = self._folders[wanted.write.item.folder]
            trouble = self._no_use(wanted.write) or prepared.trouble
            if trouble is not None:
                yield self._failed(wanted.write, *trouble)
            else:
                try:
                    data, has_nul = checked(wanted.write)
                    if has_nul and not session.offers("BINARY"):
                        raise Unfit("nul", "it has NUL bytes, and the server does not offer to take any (BINARY, RFC 3516)")
                except Unfit as unfit:
                    yield self._failed(wanted.write, unfit.code, unfit.reason)
                else:
                    wanted.alone = wanted.alone or has_nul
                    if command is not None and wanted.alone:
                        self._again.append(deque([wanted]))
                    else:
                        if command is None:
                            command = self._begin(session, wanted)
                        refused = self._put(session, command, wanted, prepared, data, binary=has_nul)
                        if refused is not None:
                            self._window.remove(command)
                            yield from self._answered(command, refused)
                            return
            following = piece.popleft() if piece else None if piece is not None else self._pull(source)
            if following is None:
                break
            if command is None or self._belongs(session, command, following):
                wanted = following
                continue
            if piece is not None:
                piece.appendleft(following)
            else:
                self._next = following
            break
        if command is not None:
            command.ended = True
            session.channel.put(b"\r\n")

    def _no_use(self, write: Write[Message]) -> tuple[str, str] | None:
        """Why the server would refuse a message for certain: code and reason. Where a message found no room, a smaller one may."""
        if self._closed:
            return "for-now", self._closed
        if self._full and (self._no_room >= _FULL or write.size >= self._full_from):
            return "over-quota", self._full
        return None

    def _make_way(self, session: ImapSession, wanted: Wanted) -> Iterator[Written[Message]]:
        """Takes in all answers first where this message cannot be sent beside others: its folder is not prepared, it is large, or the server
        wants to be asked."""
        folder = wanted.write.item.folder
        if folder in self._folders and wanted.write.size <= WHOLE and self._at_once(session, wanted.write):
            return
        while self._window and self._window[-1].ended:
            try:
                yield from self._receive(session)
            except (LineCut, ProtocolBroken):
                self._again.appendleft(deque([wanted]))
                raise
        if folder not in self._folders:
            try:
                self._folders[folder] = open_for_writing(session, folder)
            except (LineCut, ProtocolBroken):
                self._again.appendleft(deque([wanted]))
                raise

    @staticmethod
    def _at_once(session: ImapSession, write: Write[Message]) -> bool:
        return write.size <= session.channel.literals and session.channel.at_once(mailbox(write.item.folder))

    def _begin(self, session: ImapSession, wanted: Wanted) -> Command:
        folder = wanted.write.item.folder
        several = self._multi and not wanted.alone and session.offers("MULTIAPPEND") and self._at_once(session, wanted.write)
        # From the first byte on it is in flight: whatever happens now, its messages have outcomes of their own.
        command = Command(b"", folder, self._most if several else 1, pauses=self._pauses)
        self._window.append(command)
        if several:
            self._most = min(2 * self._most, BATCH_MESSAGES)
        return command

    def _belongs(self, session: ImapSession, command: Command, wanted: Wanted) -> bool:
        """Whether a message goes into the command that is under way, too."""
        if wanted.alone or len(command.sent) >= command.most or wanted.write.item.folder != command.folder:
            return False
        return command.size + wanted.write.size <= BATCH_BYTES and wanted.write.size <= WHOLE and self._at_once(session, wanted.write)

    def _put(
        self, session: ImapSession, command: Command, wanted: Wanted, folder: TargetFolder, data: bytes | None, *, binary: bool
    ) -> Tagged | None:
        channel, item = session.channel, wanted.as_sent(folder)
        command.sent.append(Dispatched(wanted, item))
        command.size += wanted.write.size
        date = b' "%s"' % item.internaldate.encode("ascii") if item.internaldate else b""
        options = b"(" + " ".join(item.flags).encode("ascii") + b")" + date
        if not command.tag:
            command.tag = channel.start_open(b"APPEND", mailbox(item.folder), options)
            refused = channel.early(command.tag)
            if refused is not None:
                return refused
        else:
            channel.put(b" " + options + b" ")
        refused = channel.literal_head(wanted.write.size, binary=binary)
        if refused is not None:
            return refused
        if data is not None:
            channel.put(data)
        else:
            self._stream(session, wanted.write)
        return None

    def _stream(self, session: ImapSession, write: Write[Message]) -> None:
        """A large message, straight from its store. Where the store fails now, only cutting the line keeps half a message off the server."""
        assert write.open is not None
        left = write.size
        try:
            with write.open() as stream:
                while left:
                    chunk = stream.read(min(_CHUNK, left))
                    if not chunk:
                        raise Unfit("damaged", f"its stored bytes ended {left} bytes early")
                    session.channel.put(chunk)
                    left -= len(chunk)
        except ConnectionFailed:
            raise
        except (Unfit, OSError, HostbackupError) as error:
            self._window.pop()
            self._halves.append(self._failed(write, "damaged", f"its stored bytes could not be read to the end: {error}"))
            self._line.progress()
            raise LineCut("given up in mid-message", where=session.where) from error

    # -- receiving ----------------------------------------------------------------------------------------------------------------------

    def _receive(self, session: ImapSession) -> Iterator[Written[Message]]:
        """Takes in the next tagged response."""
        while True:
            response = session.channel.next()
            if not isinstance(response, Tagged):
                continue
            command = next((one for one in self._window if one.tag == response.tag), None)
            if command is None:
                raise ProtocolBroken("the server answered a command out of order", where=session.where)
            self._window.remove(command)
            yield from self._answered(command, response)
            return

    def _answered(self, command: Command, tagged: Tagged) -> Iterator[Written[Message]]:
        """The outcomes that a tagged response gives; what is to be sent once more has none yet."""
        self._line.progress()
        if tagged.ok:
            self._waits = self._no_room = self._put_off = 0
            self._proven = self._proven or len(command.sent) > 1
            if command.folder in self._folders:
                self._folders[command.folder].taken += len(command.sent)
            uidvalidity, uids = appended_uids(tagged.answer, len(command.sent))
            for sent, uid in zip(command.sent, uids, strict=True):
                yield self._taken(sent, uidvalidity, uid)
            return
        code = code_of(tagged.answer)
        about = reach(code)
        if about is Reach.MOMENT and self._may_wait(command, tagged.answer):
            if len(command.sent) > 1:
                command.put_off = True
                self._suspects.append(command)
            else:
                self._again.append(deque(sent.wanted for sent in command.sent))
        elif len(command.sent) > 1 and about is not Reach.FOLDER:
            self._multi = self._proven or tagged.answer.status != "BAD"
            self._tight = self._tight or about is not Reach.MESSAGE
            self._suspects.append(command)
        else:
            yield from self._refused(command, code, tagged.answer)

    def _may_wait(self, command: Command, answer: Answer) -> bool:
        """Whether what was put off is to be sent again, after a pause where one is due: all that was in flight together needs but one."""
        if command.pauses < self._pauses and not any(sent.wanted.waited for sent in command.sent):
            return True
        if self._waits >= _WAITS or any(sent.wanted.waited for sent in command.sent):
            for sent in command.sent:
                sent.wanted.waited = True
            return False
        self._waits += 1
        self._pauses += 1
        told = wait_told(answer.text)
        self._pause(min(told, SECONDS_AT_MOST) if told is not None else 0.5 * 2**self._waits)
        return True

    def _look_into(self, session: ImapSession) -> Iterator[Written[Message]]:
        """A refused command has appended none of its messages (RFC 3502 §3), and they can be sent again in pieces. Where the folder has grown by
        more than what was taken, the server may not keep to that: then they are in doubt."""
        told = {name: session.status(name) for name in {one.folder for one in self._suspects} if name in self._folders}
        suspects, self._suspects = self._suspects, []
        grown = {name for name, now in told.items() if now is not None and self._folders[name].has_grown(now.uidvalidity, now.uidnext)}
        for command in reversed(suspects):
            if command.folder not in grown:
                wanted = [sent.wanted for sent in command.sent]
                self._again.extendleft([deque(wanted)] if command.put_off else reversed([*pieces(wanted)]))
        self._multi = self._multi and not grown
        for name in grown:
            self._folders.pop(name)  # it is opened anew, and counted from there
        for command in suspects:
            if command.folder in grown:
                yield from self._in_part(command, "its folder grew all the same")

    def _in_part(self, command: Command, why: str) -> Iterator[Written[Message]]:
        for sent in command.sent:
            yield self._failed(sent.wanted.write, "in-part", f"the server refused it together with others, and {why}")

    def _refused(self, command: Command, code: str, answer: Answer) -> Iterator[Written[Message]]:
        reason, about = reason_of(answer), reach(code)
        if code == "folder-missing":
            self._folders.pop(command.folder, None)
        elif about is Reach.FOLDER:
            if command.folder in self._folders:
                self._folders[command.folder].trouble = code, reason
        elif about is Reach.ACCOUNT:
            self._no_room += 1
            self._full_from = min(command.size, self._full_from) if self._full else command.size
            self._full = reason
        elif about is Reach.MOMENT:
            self._put_off += 1
            if self._put_off >= _FULL:
                self._closed = reason
        for sent in command.sent:
            other = sent.wanted.with_another_date() if code == "refused" else None
            if other is not None:
                self._again.append(deque([other]))
            else:
                yield self._failed(sent.wanted.write, code, reason)

    def _taken(self, sent: Dispatched, uidvalidity: int, uid: int) -> Written[Message]:
        write = sent.wanted.write
        if sent.item.flags != write.item.flags:
            self._losses.update((sent.item.folder, flag) for flag in write.item.flags if flag not in sent.item.flags)
        date = mail_dates.loss(write.item, sent.item, sent.wanted.dated)
        if date:
            self._losses[sent.item.folder, date] += 1
        item = sent.item
        return Written(write, Message(item.folder, uidvalidity, uid, item.size, item.internaldate, item.flags))

    def _recover(self, error: ConnectionFailed, session: ImapSession | None) -> Iterator[Written[Message]]:
        heard = session is not None and bool(self._window) and not self._halves and isinstance(error, LineCut)
        yield from self._halves
        self._halves.clear()
        for response in session.channel.late(_LATE) if session is not None and heard else ():
            if isinstance(response, Untagged) and response.answer.status == "BYE":
                error = LineCut(f"the server ended the session: {plain(response.answer.text) or 'no reason given'}", where=error.where)
            command = next((one for one in self._window if isinstance(response, Tagged) and one.tag == response.tag), None)
            if command is not None and command.ended and isinstance(response, Tagged):
                self._window.remove(command)
                yield from self._answered(command, response)
        suspects, self._suspects = self._suspects, []
        for command in suspects:
            yield from self._in_part(command, "the line was cut before anybody could look")
        window, self._window = list(self._window), deque()
        for command in window:
            code = "in-doubt" if command.ended else "cut-short"
            before = "the server confirmed it" if command.ended else "it was sent whole"
            for sent in command.sent:
                yield self._failed(sent.wanted.write, code, f"the line was cut before {before}: {error.reason}")
        self._line.cut(error)

    def _failed(self, write: Write[Message], code: str, reason: str) -> Written[Message]:
        return Written(write, write.item, self._failure(write.item.folder, code, reason, HINTS.get(code, "")))
