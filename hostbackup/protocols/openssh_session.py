"""What a login held by an `ssh` process is used for. Bytes go straight between us and that process; every wait has an end."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.protocols.openssh_mux import MuxSession, Refused, accepts, pair
from hostbackup.protocols.remote import Commands
from hostbackup.protocols.ssh_hostkeys import fingerprint

if TYPE_CHECKING:
    from hostbackup.protocols.openssh_login import Login
    from hostbackup.protocols.openssh_process import SshProcess, Workshop

_BUFFER = 1 << 20  # bytes on the way between us and ssh, each way
_TAKE = 1 << 18  # bytes taken at once
_STDERR = 1 << 16  # bytes kept of what a command complains of
_LAST_WORDS = 2.0  # seconds until ssh has told how a session ended
_FREED = 3.0  # seconds that a server may take to be done with a closed session, where it allows few
_AGAIN = 0.1
_LOCAL = 10.0  # seconds until ssh, on this machine, takes a request


class OpenSshSession(Commands):
    """One login, as a `hostbackup.protocols.remote.Login`. Used by several threads; closed once, by whoever made it."""

    def __init__(self, process: SshProcess, shop: Workshop, login: Login, address: str) -> None:
        super().__init__(login.target.shell)
        assert login.key is not None
        self._process = process
        self._shop = shop
        self._timeout = login.target.timeout
        self._freed = -_FREED
        self.host = login.settings.host
        self.address = address
        self.port = login.settings.port
        self.host_key_fingerprint = fingerprint(login.key)
        self.host_key_type = login.key.type
        self.server_version = login.version

    @property
    def alive(self) -> bool:
        return self._process.alive

    def responds(self) -> bool:
        """Whether the ssh process still takes sessions: asked, not assumed, as its end shows a little later than those of its sessions."""
        return self.alive and accepts(self._shop.control)

    def cut(self) -> LineCut:
        """The error for a line that is gone, with what ssh had to say about it."""
        words = [line for line in self._process.said() if line and not line.startswith("debug")]
        return LineCut(f"the line was cut: {words[-1] if words else 'the ssh process ended'}", where=self.host)

    def open_sftp_channel(self) -> MuxChannel:
        """A new channel with the SFTP subsystem on it. Raises LineCut, or ProtocolBroken where the server refuses."""
        near, far = pair(_BUFFER)
        errors, far_errors = pair(_STDERR)
        with far, far_errors:
            try:
                mux = self._open(b"sftp", [far, far, far_errors], "an SFTP channel", subsystem=True)
            except BaseException:
                near.close()
                errors.close()
                raise
        return MuxChannel(self, mux, near, errors)

    def start(self, command: bytes, stdin: Iterable[bytes] = (), *, timeout: float | None = None) -> MuxCommand:
        """As `hostbackup.protocols.remote.Login.start`, but that the server runs no commands may also show as the command's end."""
        ends = [pair(_BUFFER), pair(_BUFFER), pair(_STDERR)]
        try:
            mux = self._open(command, [far for _, far in ends], "a command")
        except BaseException:
            for near, _ in ends:
                near.close()
            raise
        finally:
            for _, far in ends:
                far.close()
        return MuxCommand(self, mux, [near for near, _ in ends], stdin, timeout or self._timeout)

    def _open(self, command: bytes, ends: list[socket.socket], what: str, *, subsystem: bool = False) -> MuxSession:
        try:
            mux = MuxSession(self._shop.control, _LOCAL)
            try:
                mux.open(command, [end.fileno() for end in ends], subsystem=subsystem, timeout=self._timeout)
            except BaseException:
                mux.close()
                raise
        except Refused as error:
            if time.monotonic() < self._freed + _FREED:
                time.sleep(_AGAIN)
                return self._open(command, ends, what, subsystem=subsystem)
            raise ProtocolBroken(f"the server refuses {what}: {error}", where=self.host) from error
        except TimeoutError as error:
            self.abort()
            raise LineCut(f"the server did not answer within {self._timeout:.0f} seconds (opening {what})", where=self.host) from error
        except OSError as error:
            raise self.cut() from error
        return mux

    def freed(self) -> None:
        """A session was closed. It counts at the server until its process there has ended: what is refused until then may be allowed soon."""
        self._freed = time.monotonic()

    def abort(self) -> None:
        """Drops the line without a word: never blocks for long."""
        self._process.kill()

    def close(self) -> None:
        """Ends the login. May be called twice."""
        self._process.close()
        self._shop.close()


class MuxChannel:
    """A session's standard input and output on one socket, as a `hostbackup.protocols.sftp.client.ByteChannel`."""

    selects_writes = True

    def __init__(self, session: OpenSshSession, mux: MuxSession, near: socket.socket, errors: socket.socket) -> None:
        near.setblocking(False)
        self._session = session
        self._mux = mux
        self._socket = near
        self._errors = _Bounded(errors)
        self._begun = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv(self, limit: int, /) -> bytes | None:
        """As ByteChannel. Raises ProtocolBroken where the server ends a session it never said a word on."""
        self._errors.take()  # a session whose complaints nobody takes would stop
        try:
            data = self._socket.recv(min(limit, _BUFFER))
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""  # the end, with something of ours not taken any more
        if not data and not self._begun:
            self._refused()
        self._begun = True
        return data

    def _refused(self) -> None:
        self._mux.wait(_LAST_WORDS)
        if not self._session.responds():
            raise self._session.cut()
        self._errors.take()
        told = self._errors.held.decode("utf-8", "replace").strip().splitlines()
        reason = "the server refuses an SFTP channel" + (f": {told[-1]}" if told else "")
        raise ProtocolBroken(reason, where=self._session.host, hint="is SFTP switched on for this login?")

    def send(self, data: bytes, /) -> int:
        """As ByteChannel. What goes to a session that has ended goes nowhere: `recv` tells of that, and why."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            return len(data)

    def close(self) -> None:
        self._session.freed()
        self._mux.close()
        self._errors.close()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class MuxCommand:
    """A remote command, as a `hostbackup.protocols.remote.Running`."""

    def __init__(self, session: OpenSshSession, mux: MuxSession, ends: list[socket.socket], stdin: Iterable[bytes], limit: float) -> None:
        self._in, self._out, errors = ends
        self._in.setblocking(False)
        self._out.setblocking(False)
        self._errors = _Bounded(errors)
        self._session = session
        self._mux = mux
        self._stdin = iter(stdin)
        self._pending = memoryview(b"")
        self._feeding = True
        self._limit = limit
        self._lock = threading.Lock()
        self._iterated = False  # some thread may be waiting on the sockets: it closes them
        self.exit = -1

    @property
    def stderr(self) -> bytes:
        return bytes(self._errors.held)

    def __iter__(self) -> Iterator[bytes]:
        with self._lock:
            self._iterated = True
        try:
            yield from self._exchange()
            self._errors.take()
            self.exit = self._mux.exit
            if self.exit < 0:
                self._without_exit()
        finally:
            for end in (self._mux, self._errors, self._in, self._out):
                end.close()

    def _without_exit(self) -> None:
        """A session that ended without an exit code: a signal, a server that runs no commands, or a line that is gone."""
        if not self._session.responds():
            raise self._session.cut()
        if b"exec request failed" in self._errors.held:  # ssh's own words
            raise ProtocolBroken("the server does not run commands", where=self._session.host)

    def _exchange(self) -> Iterator[bytes]:
        watched: tuple[_Bounded | MuxSession, ...] = (self._errors, self._mux)
        open_end, last = True, time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            selector.register(self._in, selectors.EVENT_WRITE)
            for one in watched:
                selector.register(one, selectors.EVENT_READ)
            # How it ended is told on the control socket; what it wrote may still be on its way by then, and the other way round.
            while open_end or not self._mux.ended:
                ready = [key.fileobj for key, _ in selector.select(max(0.0, self._limit - (time.monotonic() - last)))]
                if ready:
                    last = time.monotonic()
                elif time.monotonic() - last >= self._limit:
                    raise LineCut(f"a remote command has been silent for {self._limit:.0f} seconds", where=self._session.host)
                if self._in in ready and not self._feed():
                    selector.unregister(self._in)
                    self._in.close()
                for one in watched:
                    if one in ready:
                        one.take()
                        if one.ended:
                            selector.unregister(one)
                if self._out in ready:
                    data = self._out.recv(_TAKE)
                    if data:
                        yield data
                        last = time.monotonic()  # whoever takes the output may take their time
                    else:
                        open_end = False
                        selector.unregister(self._out)

    def _feed(self) -> bool:
        """Gives the command what it takes now. False: there is no more, or the command wants no more."""
        while True:
            while not self._pending:
                piece = next(self._stdin, None)
                if piece is None:
                    return False
                self._pending = memoryview(piece)
            try:
                self._pending = self._pending[self._in.send(self._pending) :]
            except BlockingIOError:
                return True
            except OSError:
                return False

    def close(self) -> None:
        """Ends the command; whoever iterates comes to the end at once."""
        self._session.freed()
        with self._lock:
            self._mux.hang_up()
            for end in (self._in, self._out):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            if not self._iterated:
                for one in (self._mux, self._errors, self._in, self._out):
                    one.close()


class _Bounded:
    """What comes on standard error: the first 64 KiB are kept, the rest is taken and dropped."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._lock = threading.Lock()
        self.held = bytearray()
        self.ended = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            while not self.ended:
                data = self._socket.recv(_STDERR)
                self.ended = not data
                self.held += data[: _STDERR - len(self.held)]

    def close(self) -> None:
        self._socket.close()
