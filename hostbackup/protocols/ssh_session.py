"""What a login is used for. Every wait has an end: a server that freezes ends in LineCut, not in a hang."""

from __future__ import annotations

import contextlib
import selectors
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.interrupts import later
from hostbackup.protocols.remote import Commands
from hostbackup.protocols.ssh_hostkeys import fingerprint

if TYPE_CHECKING:
    import fabric
    import paramiko

    from hostbackup.protocols.ssh import SshTarget

_WINDOW = 32 << 20  # bytes the server may send ahead on one channel: above what the SFTP engine ever asks for at once
_PACKET = 1 << 17
_FAREWELL = 5.0  # seconds to close one channel
_COMMAND_WINDOW = 8 << 20  # the same for a command: above bandwidth times round trip on any line to a web host
_TAKE = 1 << 24  # bytes taken from a command at once: all that is there, since paramiko moves the rest of its buffer at each partial read
_SOON = 0.005  # seconds between looks at what no selector can wait for
_STDERR = 1 << 16  # bytes kept of what a command complains of


class SshSession(Commands):
    """One login. Used by several threads; closed once, by whoever made it."""

    def __init__(self, connection: fabric.Connection, transport: paramiko.Transport, target: SshTarget, address: str, port: int) -> None:
        super().__init__(target.shell)
        self._connection = connection
        self._transport = transport
        self._target = target
        self.address = address
        self.port = port
        self.host_key_fingerprint = fingerprint(transport.get_remote_server_key())
        self.host_key_type: str = transport.get_remote_server_key().get_name()
        self.server_version: str = transport.remote_version

    @property
    def host(self) -> str:
        """The server's name, for people."""
        return self._target.host

    @property
    def alive(self) -> bool:
        return bool(self._transport.is_active())

    def open_sftp_channel(self) -> ParamikoChannel:
        """A new channel with the SFTP subsystem on it. Raises LineCut, or ProtocolBroken where the server refuses."""
        import paramiko

        try:
            with self.ends_within(self._target.timeout, "opening an SFTP channel"):
                channel = self._transport.open_session(window_size=_WINDOW, max_packet_size=_PACKET, timeout=self._target.timeout)
                channel.invoke_subsystem("sftp")
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not self.alive:
                raise LineCut(f"the line was cut: {error}", where=self._target.host) from error
            hint = "is SFTP switched on for this login?"
            raise ProtocolBroken(f"the server refuses an SFTP channel: {error}", where=self._target.host, hint=hint) from error
        return ParamikoChannel(channel, self, self._target.timeout * 2)

    @contextlib.contextmanager
    def ends_within(self, seconds: float, doing: str) -> Iterator[None]:
        """Ends the whole line if the block is not through in time: paramiko's own waits have no limit. Raises LineCut then."""
        cut = threading.Event()

        def abort() -> None:
            cut.set()
            self.abort()

        timer = threading.Timer(seconds, abort)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:
            if cut.is_set():
                raise LineCut(f"the server did not answer within {seconds:.0f} seconds ({doing})", where=self._target.host) from error
            raise
        finally:
            timer.cancel()

    def start(self, command: bytes, stdin: Iterable[bytes] = (), *, timeout: float | None = None) -> ParamikoCommand:
        """As `hostbackup.protocols.remote.Login.start`."""
        import paramiko

        try:
            with self.ends_within(self._target.timeout, "starting a command"):
                channel = self._transport.open_session(window_size=_COMMAND_WINDOW, max_packet_size=_PACKET, timeout=self._target.timeout)
                channel.exec_command(command)
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not self.alive:
                raise LineCut(f"the line was cut: {error}", where=self._target.host) from error
            raise ProtocolBroken(f"the server does not run commands: {error}", where=self._target.host) from error
        return ParamikoCommand(channel, self, stdin, timeout or self._target.timeout)

    def abort(self) -> None:
        """Drops the line without a word: never blocks."""
        self._transport.close()

    def close(self) -> None:
        """Ends the login. May be called twice."""
        self.abort()
        self._connection.client.close()


class ParamikoCommand:
    """A remote command on a paramiko channel, as a `hostbackup.protocols.remote.Running`."""

    def __init__(self, channel: paramiko.Channel, session: SshSession, stdin: Iterable[bytes], limit: float) -> None:
        channel.settimeout(0.0)
        self._channel = channel
        self._session = session
        self._stdin = iter(stdin)
        self._limit = limit
        self._watch = _Watch(session, limit)
        self._pending = memoryview(b"")
        self._feeding = True
        self._errors = bytearray()
        self.exit = -1

    @property
    def stderr(self) -> bytes:
        return bytes(self._errors)

    def __iter__(self) -> Iterator[bytes]:
        import paramiko

        try:
            yield from self._exchange()
            self.exit = self._channel.exit_status if self._channel.exit_status_ready() else -1
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise LineCut(f"the line was cut during a remote command: {error}", where=self._session.host) from error
        finally:
            self.close()

    def _exchange(self) -> Iterator[bytes]:
        channel, last = self._channel, time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(channel.fileno(), selectors.EVENT_READ)
            while True:
                moved = self._feed()
                while data := self._come():
                    yield data
                    moved = True
                while channel.recv_stderr_ready():
                    self._errors += channel.recv_stderr(_TAKE)[: _STDERR - len(self._errors)]
                    moved = True
                if channel.closed or (channel.exit_status_ready() and channel.eof_received):
                    if not (channel.recv_ready() or channel.recv_stderr_ready()):
                        return
                    continue
                if moved:
                    last = time.monotonic()
                    continue
                if time.monotonic() - last > self._limit:
                    raise LineCut(f"a remote command has been silent for {self._limit:.0f} seconds", where=self._session.host)
                # The end of a command and a reopened send window wake no selector: look again soon.
                selector.select(_SOON if self._pending or channel.eof_received else min(0.5, self._limit))

    def _come(self) -> bytes:
        with later:
            return bytes(self._channel.recv(_TAKE)) if self._channel.recv_ready() else b""

    def _feed(self) -> bool:
        """Gives the command what its channel takes now; whether that was anything."""
        moved = False
        while self._feeding:
            if not self._pending:
                data = next(self._stdin, None)
                if data is None:
                    self._feeding = False
                    with self._session.ends_within(self._limit, "feeding a command"):
                        self._channel.shutdown_write()
                    return True
                self._pending = memoryview(data)
                continue
            try:
                sent = _send(self._channel, self._pending, self._watch)
            except OSError:
                if not self._channel.closed or not self._session.alive:
                    raise
                sent, self._feeding = len(self._pending), False  # the command ended without wanting more
            self._pending = self._pending[sent:]
            if not sent:
                break
            moved = True
            if self._channel.recv_ready():
                break  # what it says meanwhile must not pile up
        return moved

    def close(self) -> None:
        self._watch.stop()
        # Should the line be gone, whatever is done next on it tells.
        with contextlib.suppress(LineCut, OSError, EOFError), self._session.ends_within(self._limit, "ending a command"):
            self._channel.close()


def _send(channel: paramiko.Channel, data: bytes | memoryview, watch: _Watch) -> int:
    """Sends what the channel's window takes, and tells how many bytes that were. The TCP connection below may block: `watch` ends that."""
    total, step = 0, channel.out_max_packet_size - 64
    watch.begin()
    try:
        while total < len(data):
            with later:
                total += channel.send(bytes(data[total : total + step]))
            if channel.closed:
                raise OSError("the channel is closed")
    except TimeoutError:
        pass  # the window is full
    finally:
        watch.end()
    return total


class ParamikoChannel:
    """A paramiko channel as a `hostbackup.protocols.sftp.client.ByteChannel`."""

    selects_writes = False

    def __init__(self, channel: paramiko.Channel, session: SshSession, limit: float) -> None:
        channel.settimeout(0.0)
        self._channel = channel
        self._session = session
        self._watch = _Watch(session, limit)
        self._descriptor: int = channel.fileno()

    def fileno(self) -> int:
        return self._descriptor

    def recv(self, limit: int, /) -> bytes | None:
        try:
            with later:
                data: bytes = self._channel.recv(limit)
        except TimeoutError:
            return None
        return data

    def send(self, data: bytes, /) -> int:
        """As ByteChannel. Where the TCP connection below blocks for the constructor's `limit` seconds, the line is dropped."""
        return _send(self._channel, data, self._watch)

    def close(self) -> None:
        self._watch.stop()
        if not self._session.alive:
            return
        # Behind a frozen server even the farewell may block; then the line goes altogether.
        with contextlib.suppress(LineCut, OSError, EOFError), self._session.ends_within(_FAREWELL, "closing a channel"), later:
            self._channel.close()


class _Watch:
    """Drops a session whose channel has been sending for too long. One thread, asleep but for a look every few seconds."""

    def __init__(self, session: SshSession, limit: float) -> None:
        self._since: float | None = None
        self._session = session
        self._limit = limit
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="ssh-watch", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(self._limit / 8) and self._session.alive:
            since = self._since
            if since is not None and time.monotonic() - since > self._limit:
                self._session.abort()
                return

    def begin(self) -> None:
        self._since = time.monotonic()

    def end(self) -> None:
        self._since = None

    def stop(self) -> None:
        self._over.set()
