"""What a vault knows beside its contents: small JSON documents, and journals that survive a torn last line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from hostbackup import osal
from hostbackup.errors import VaultError
from hostbackup.model import component
from hostbackup.vault.faults import told
from hostbackup.vault.gate import Gate
from hostbackup.vault.records import Line, canonical

_LONGEST = 200  # bytes of a file name before its tail is hashed; 255 is what file systems take


def state_name(name: str) -> str:
    """`name` as a file name: percent-encoded, the tail replaced by a hash where it is too long."""
    quoted = component(name)
    if not quoted:
        raise ValueError("a state without a name")
    if len(quoted) <= _LONGEST:
        return quoted
    return f"{quoted[: _LONGEST - 33]}~{hashlib.sha256(quoted.encode()).hexdigest()[:32]}"


class Journal:
    """Lines of JSON that are only ever appended. A last line that a crash tore is dropped; damage before it raises VaultError.

    Used from several threads at once, by one process: the vault's lock sees to that. What writes raises VaultError once `gate` is closed.
    """

    def __init__(self, path: Path, gate: Gate | None = None) -> None:
        self.path = path
        self._gate = gate or Gate()
        self._lock = threading.Lock()
        self._fd: int | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self) -> int:
        if self._fd is None:
            new = not self.path.exists()
            whole = 0 if new else self._whole_bytes()
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
            if os.fstat(fd).st_size > whole:
                os.ftruncate(fd, whole)  # else the next line would be glued to the torn one
            self._fd = fd
            if new:
                osal.sync_folder(self.path.parent)
        return self._fd

    def append(self, records: Iterable[Line]) -> None:
        """Adds the records in one write. Durable after `sync`."""
        data = b"".join(map(canonical, records))
        if not data:
            return
        with self._gate, self._lock:
            try:
                fd = self._open()
                begin = os.fstat(fd).st_size
                done = os.write(fd, data)
                try:
                    while done < len(data):
                        done += os.write(fd, data[done:])
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(fd, begin)
                    raise
            except OSError as error:
                raise told(error, self.path, len(data)) from error

    def sync(self) -> None:
        with self._gate, self._lock:
            if self._fd is not None:
                try:
                    osal.sync_fd(self._fd)
                except OSError as error:
                    raise told(error, self.path) from error

    def _lines(self) -> Iterator[tuple[int, Line]]:
        """Each whole record with the offset of its end."""
        end = 0
        torn: tuple[int, str] | None = None
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    if torn is not None:
                        hint = "move this file away to go on without it; keep it, it tells what was done"
                        raise VaultError(f"line {torn[0]} of this journal is damaged: {torn[1]}", where=str(self.path), hint=hint)
                    try:
                        record = json.loads(raw)
                    except ValueError as error:
                        torn = number, str(error)
                        continue
                    if not isinstance(record, dict) or not raw.endswith(b"\n"):
                        torn = number, "not a whole JSON object"
                        continue
                    end += len(raw)
                    yield end, record
        except FileNotFoundError:
            return
        except OSError as error:
            raise told(error, self.path) from error

    def _whole_bytes(self) -> int:
        return max((end for end, _ in self._lines()), default=0)

    def __iter__(self) -> Iterator[Line]:
        """The records, oldest first."""
        for _, record in self._lines():
            yield record

    def replace(self, records: Iterable[Line]) -> None:
        """Puts these records in place of all others: whole or not at all, and durable."""
        with self._gate, self._lock:
            self._close()
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
                with os.fdopen(fd, "wb") as file:
                    for record in records:
                        file.write(canonical(record))
                    file.flush()
                    osal.sync_fd(file.fileno())
                temporary.replace(self.path)
                osal.sync_folder(self.path.parent)
            except OSError as error:
                raise told(error, self.path) from error
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    @property
    def begun(self) -> bool:
        """Whether it tells anything."""
        try:
            return self.path.stat().st_size > 0
        except OSError:
            return False

    def clear(self) -> None:
        """Ends what it told, so that another can begin. Does nothing to one that tells nothing."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        except OSError as error:
            raise told(error, self.path) from error
        if size:
            self.replace(())

    def remove(self) -> None:
        """Ends the journal for good: its work is done."""
        with self._gate, self._lock:
            self._close()
            try:
                self.path.unlink(missing_ok=True)
                osal.sync_folder(self.path.parent)
            except OSError as error:
                raise told(error, self.path) from error

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        with self._lock:
            self._close()


class StateFolder:
    """`state/`: documents by name (`NAME.json`) and journals by name (`NAME.jsonl`). A name may be any text, such as `push-web/public_html`."""

    def __init__(self, folder: Path, gate: Gate | None = None) -> None:
        self.folder = folder
        self._gate = gate or Gate()

    def read(self, name: str) -> dict[str, Any] | None:
        """The document, None where there is none. Raises VaultError where it is damaged."""
        return _document(self.folder / f"{state_name(name)}.json")

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Replaces the document, whole or not at all, and durably."""
        path = self.folder / f"{state_name(name)}.json"
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
        try:
            with self._gate:
                osal.write_durably(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise told(error, path, len(text)) from error

    def remove(self, name: str) -> None:
        path = self.folder / f"{state_name(name)}.json"
        try:
            with self._gate:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise told(error, path) from error

    def journal(self, name: str) -> Journal:
        """The journal of that name; made by its first append."""
        return Journal(self.folder / f"{state_name(name)}.jsonl", self._gate)

    def journals(self, prefix: str = "") -> list[Journal]:
        """All journals whose name begins with `prefix`, sorted."""
        return [Journal(path, self._gate) for path in self._named(prefix, ".jsonl")]

    def documents(self, prefix: str = "") -> list[dict[str, Any]]:
        """All documents whose name begins with `prefix`, sorted by name."""
        return [value for path in self._named(prefix, ".json") if (value := _document(path)) is not None]

    def _named(self, prefix: str, end: str) -> list[Path]:
        start = state_name(prefix) if prefix else ""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except OSError as error:
            raise told(error, self.folder) from error
        return [self.folder / name for name in sorted(names) if name.startswith(start) and name.endswith(end) and not name.startswith(".")]


def _document(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise told(error, path) from error
    except ValueError as error:
        raise VaultError(f"this file is damaged: {error}", where=str(path), hint="move it away to go on without it") from error
    if not isinstance(value, dict):
        raise VaultError("this file holds no JSON object", where=str(path), hint="move it away to go on without it")
    return value
