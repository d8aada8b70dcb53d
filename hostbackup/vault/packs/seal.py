"""Encryption of what leaves this machine, in the age format (age-encryption.org/v1): the public key closes, the secret key alone opens."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from hostbackup.errors import Damaged, HostbackupError, UsageError

END = ".age"
_ENCRYPTED = (b"age-encryption.org/v1\n", b"-----BEGIN AGE ENCRYPTED FILE-----")
_OVERHEAD = 4096  # bytes that a header takes, more or less; and 16 for each 64 KiB


class WrongKey(HostbackupError):
    """The secret key at hand does not open what is encrypted. Nothing is lost by it: another one may."""

    code = "wrong-key"


def _pyrage() -> Any:
    try:
        import pyrage
    except ImportError as error:
        raise UsageError("an encrypted copy needs pyrage, which is not installed", hint="pip install 'hostbackup[age]'") from error
    return pyrage


class Recipients:
    """Public keys (`age1…`, or `ssh-ed25519 …`, `ssh-rsa …`) that contents are encrypted to."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises UsageError for one that is none."""
        pyrage = _pyrage()
        self.texts = tuple(texts)
        self._keys = []
        for text in texts:
            try:
                self._keys.append((pyrage.ssh if text.startswith("ssh-") else pyrage.x25519).Recipient.from_str(text))
            except pyrage.RecipientError as error:
                raise UsageError(f"{text[:100]!r} is no age recipient", hint="age-keygen prints one that begins with age1") from error

    def seal(self, data: bytes) -> bytes:
        """`data` encrypted. Another result each time."""
        sealed: bytes = _pyrage().encrypt(data, self._keys)
        return sealed

    def sealed(self, open_it: Callable[[], BinaryIO]) -> BinaryIO:
        """A stream encrypted as it is read."""
        return _piped(open_it, lambda source, out: _pyrage().encrypt_io(source, out, self._keys))

    @staticmethod
    def sealed_size(size: int) -> int:
        """About how many bytes `size` bytes become."""
        return size + _OVERHEAD + 16 * (size // 65536 + 1)


class Identities:
    """Secret keys from an identity file of age: lines `AGE-SECRET-KEY-1…`, or an SSH private key. `publics`: the public keys, where that is known."""

    def __init__(self, path: Path, ask: Callable[[str], str] | None = None) -> None:
        """Raises UsageError where the file cannot be read or holds no secret key. `ask`: for the passphrase of a file that `age -p` encrypted."""
        pyrage = _pyrage()
        hint = "give the file that age-keygen wrote"
        try:
            text = path.expanduser().read_bytes()
        except OSError as error:
            raise UsageError(f"this identity file cannot be read: {(error.strerror or str(error)).lower()}", where=str(path), hint=hint) from error
        self.path = path
        self.publics: list[str] = []
        self._keys = []
        if text.startswith(_ENCRYPTED):
            text = _by_passphrase(path, text, ask)
        try:
            if b"PRIVATE KEY-----" in text:
                self._keys.append(pyrage.ssh.Identity.from_buffer(text))
            else:
                for line in text.decode("utf-8").splitlines():
                    if line.strip() and not line.startswith("#"):
                        self._keys.append(pyrage.x25519.Identity.from_str(line.strip()))
                        self.publics.append(str(self._keys[-1].to_public()))
        except (pyrage.IdentityError, UnicodeDecodeError) as error:
            raise UsageError("this file holds no secret key of age", where=str(path), hint=hint) from error
        if not self._keys:
            raise UsageError("this file holds no secret key of age", where=str(path), hint=hint)

    def unseal(self, data: bytes, where: str) -> bytes:
        """What was encrypted. Raises WrongKey, or Damaged where it is not as it was encrypted."""
        pyrage = _pyrage()
        try:
            opened: bytes = pyrage.decrypt(data, self._keys)
        except pyrage.DecryptError as error:
            raise self._refused(error, where) from error
        return opened

    def unsealed(self, open_it: Callable[[], BinaryIO], where: str) -> BinaryIO:
        """A stream decrypted as it is read; raises as `unseal` does, at its end at the latest."""

        def work(source: Any, out: BinaryIO) -> None:
            pyrage = _pyrage()
            try:
                pyrage.decrypt_io(source, out, self._keys)
            except (pyrage.DecryptError, OSError) as error:
                raise self._refused(error, where) from error

        return _piped(open_it, work)

    def _refused(self, error: Exception, where: str) -> HostbackupError:
        if "No matching keys" in str(error):
            hint = "give the identity file of a recipient that this copy is encrypted to: see `recipients` in its format.json"
            return WrongKey(f"the secret key in {self.path} does not open it", where=where, hint=hint)
        return Damaged("its encrypted bytes are damaged", where=where)


def _by_passphrase(path: Path, data: bytes, ask: Callable[[str], str] | None) -> bytes:
    """What an identity file holds that is itself encrypted."""
    if ask is None:
        hint = "run it at a terminal, or give a file without a passphrase"
        raise UsageError("this identity file has a passphrase, and nobody is there to be asked for it", where=str(path), hint=hint)
    pyrage = _pyrage()
    try:
        opened: bytes = pyrage.passphrase.decrypt(data, ask(f"passphrase of {path}"))
    except pyrage.DecryptError as error:
        raise UsageError("the passphrase does not open this identity file", where=str(path), hint="try again") from error
    return opened


class Keys:
    """What closes and opens the files of one copy. `label`: of its store. `sealed`: whether what is written there is encrypted."""

    def __init__(self, label: str, *, sealed: bool = False, recipients: Recipients | None = None, identities: Identities | None = None) -> None:
        self.sealed = sealed
        self.end = END if sealed else ""
        self.recipients = recipients if sealed else None
        self._label = label
        self._identities = identities

    @property
    def readable(self) -> bool:
        """Whether what was written there can be read here: it is in the clear, or a secret key is at hand."""
        return not self.sealed or self._identities is not None

    def where(self, key: str) -> str:
        """A file of the copy, for people."""
        return f"{self._label}/{key}"

    def closed(self, data: bytes) -> bytes:
        """`data` as it is stored."""
        return self.recipients.seal(data) if self.recipients else data

    def opened(self, key: str, data: bytes) -> bytes:
        """The inverse, of the bytes of the file `key`. Raises Damaged, WrongKey, or UsageError where a secret key is needed and there is none."""
        return self._secret(key).unseal(data, self.where(key)) if key.endswith(END) else data

    def stream(self, key: str, open_it: Callable[[], BinaryIO]) -> BinaryIO:
        """The same of a stream."""
        return self._secret(key).unsealed(open_it, self.where(key)) if key.endswith(END) else open_it()

    def _secret(self, key: str) -> Identities:
        if self._identities is None:
            hint = "give the file with a secret key of its recipients: --identity FILE"
            raise UsageError("this copy is encrypted", where=self.where(key), hint=hint)
        return self._identities


class _Source:
    """A stream that remembers what it raised: pyrage hands on no more than its text."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except BaseException as error:
            self.error = error
            raise


class _Piped:
    """What a thread writes, to be read here. An error of the thread is raised at the end, never taken for the end."""

    def __init__(self, open_it: Callable[[], BinaryIO], work: Callable[[Any, BinaryIO], None]) -> None:
        reading, writing = os.pipe()
        self._stream = os.fdopen(reading, "rb", 1 << 17)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(open_it, work, writing), name="age", daemon=True)
        self._thread.start()

    def _run(self, open_it: Callable[[], BinaryIO], work: Callable[[Any, BinaryIO], None], writing: int) -> None:
        source: _Source | None = None
        try:
            with os.fdopen(writing, "wb", 1 << 17) as out, open_it() as stream:
                source = _Source(stream)
                work(source, out)
        except BaseException as error:  # raised again where the stream is read
            self._error = (source and source.error) or error

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if size < 0 or len(data) < size:
            self._thread.join()
            if self._error is not None:
                raise self._error
        return data

    def close(self) -> None:
        self._stream.close()
        with contextlib.suppress(RuntimeError):
            self._thread.join()

    def __enter__(self) -> _Piped:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _piped(open_it: Callable[[], BinaryIO], work: Callable[[Any, BinaryIO], None]) -> BinaryIO:
    return cast(BinaryIO, _Piped(open_it, work))
