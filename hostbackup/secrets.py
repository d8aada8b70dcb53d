"""Where a password comes from, and how it stays out of sight once it is here.

A profile names a `SecretSource`: an environment variable, a file, a command, the keyring, or the text itself. Nothing is looked up while a
profile is loaded; `SecretSource.resolve` does it when a server asks, and `SecretSource.problem` says up front what can be known to be missing.
"""

from __future__ import annotations

import base64
import dataclasses
import hmac
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from hostbackup.errors import SecretError, WrongValue

COMMAND_SECONDS = 60.0
KEYRING_SERVICE = "hostbackup"
_HIDDEN = "********"
_SHORT = 4  # characters
_KINDS = ("env", "file", "command", "keyring")
_FORMS = "{ env = … }, { file = … }, { command = … }, { keyring = … } or the text itself"


class Secret:
    """A password that shows itself to nobody who does not call `reveal`: not to repr, str, format, json, pickle or a debugger's list of locals."""

    __slots__ = ("_reveal",)
    _reveal: Callable[[], str]

    def __init__(self, value: str) -> None:
        # A closure, not an attribute: what walks objects (debuggers, serialisers, `vars`) finds a function and no text.
        self._reveal = lambda: value

    def reveal(self) -> str:
        return self._reveal()

    def __repr__(self) -> str:
        return f"Secret({_HIDDEN})"

    def __str__(self) -> str:
        return _HIDDEN

    def __format__(self, spec: str) -> str:
        return _HIDDEN

    def __bool__(self) -> bool:
        return bool(self.reveal())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.reveal().encode(), other.reveal().encode())

    def __hash__(self) -> int:
        return hash((Secret, self.reveal()))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is never pickled; hand the source over and resolve it there")


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where one secret comes from. `what` is the variable, path, command line or keyring entry; "" for a literal, whose text is in `literal`.

    In a profile a command is a list, or one string split as a POSIX shell would split it; no shell ever runs it. `{ keyring = "NAME" }` is the
    entry NAME of the service `hostbackup` (`keyring set hostbackup NAME`).
    """

    kind: Literal["env", "file", "command", "keyring", "literal"]
    what: str = ""
    command: tuple[str, ...] = ()
    folder: Path = Path()  # where a command runs: the profile's folder
    literal: Secret | None = None

    @classmethod
    def of(cls, text: str) -> SecretSource:
        return cls("literal", literal=Secret(text))

    def resolve(self, where: str) -> Secret:
        """The secret itself. Raises SecretError, naming the key `where`, if it is missing, empty or unreadable."""
        if self.literal is not None:
            return self.literal
        text = {"env": self._from_env, "file": self._from_file, "command": self._from_command, "keyring": self._from_keyring}[self.kind](where)
        if not text:
            raise SecretError(f"{self} is empty", where=where)
        if "\0" in text:
            raise SecretError(f"{self} holds a NUL character, which no password can", where=where)
        return Secret(text)

    def for_user(self, user: str) -> SecretSource:
        """The same source, where a command is told of whom the secret is: `{user}` in its arguments."""
        if not self.command:
            return self
        return dataclasses.replace(self, command=(self.command[0], *(word.replace("{user}", user) for word in self.command[1:])))

    def problem(self, where: str) -> SecretError | None:
        """What can be known to be wrong without running a command or asking anybody; None where nothing is."""
        if self.kind == "command":
            import shutil

            program = self.command[0]
            folder_path = self.folder / program
            found = shutil.which(str(folder_path) if os.sep in program else program)
            return None if found else SecretError(f"there is no program {program!r} to run for {self}", where=where)
        try:
            self.resolve(where)
        except SecretError as error:
            return error
        return None

    def __str__(self) -> str:
        names = {"env": "environment variable", "file": "file", "command": "command", "keyring": "keyring entry", "literal": "literal"}
        return f"{names[self.kind]} {self.what}".rstrip()

    def _from_env(self, where: str) -> str:
        text = os.environ.get(self.what)
        if text is None:
            raise SecretError(f"{self} is not set", where=where, hint=f"export {self.what}=… before the run")
        return text

    def _from_file(self, where: str) -> str:
        try:
            return without_final_newline(Path(self.what).read_bytes().decode("utf-8"))
        except UnicodeDecodeError:
            raise SecretError(f"{self} is not UTF-8 text", where=where) from None
        except OSError as error:
            raise SecretError(f"{self} cannot be read: {error.strerror}", where=where) from None

    def _from_command(self, where: str) -> str:
        import subprocess

        program = self.command[0]
        line = [str(self.folder / program) if os.sep in program else program, *self.command[1:]]
        try:
            process = subprocess.Popen(line, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise SecretError(f"{self} cannot be run: {error.strerror}", where=where) from None
        with process:
            try:
                out, err = process.communicate(timeout=COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                raise SecretError(f"{self} gave nothing within {COMMAND_SECONDS:.0f} s", where=where) from None
            finally:
                # What the command started may hold the pipes open: nobody waits for that.
                process.kill()
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
        if process.returncode != 0:
            said = " ".join(ascii(err[-400:].decode("utf-8", "replace").strip())[1:-1].replace("\\n", " ").split())
            raise SecretError(f"{self} ended with {process.returncode}" + (f": {said}" if said else ""), where=where)
        try:
            return without_final_newline(out.decode("utf-8"))
        except UnicodeDecodeError:
            raise SecretError(f"what {self} printed is not UTF-8 text", where=where) from None

    def _from_keyring(self, where: str) -> str:
        try:
            import keyring
            import keyring.errors
        except ImportError:
            raise SecretError(f"{self} needs the package keyring", where=where, hint="pip install 'hostbackup[keyring]'") from None
        try:
            text = keyring.get_password(KEYRING_SERVICE, self.what)
        except keyring.errors.KeyringError as error:
            raise SecretError(f"{self} cannot be read: {error}", where=where) from None
        if text is None:
            raise SecretError(f"there is no {self}", where=where, hint=f"keyring set {KEYRING_SERVICE} {self.what}")
        return str(text)

    @classmethod
    def parse(cls, value: object, base: Path) -> SecretSource:
        """The source a profile's value describes; paths are relative to `base`. Raises WrongValue, which never tells the value."""
        if isinstance(value, SecretSource):
            return value
        if isinstance(value, str):
            if not value or "\0" in value:
                raise WrongValue(f"is empty or holds NUL; expected {_FORMS}")
            return cls.of(value)
        if not isinstance(value, dict):
            raise WrongValue(f"expected {_FORMS}, found {'a list' if isinstance(value, list) else 'something else'}")
        unknown = [str(key) for key in value if key not in _KINDS]
        if unknown:
            import difflib

            near = difflib.get_close_matches(unknown[0], _KINDS, 1)
            raise WrongValue(f"unknown key {unknown[0]!r}, did you mean {near[0]!r}?" if near else f"unknown key; expected {_FORMS}")
        if len(value) != 1:
            raise WrongValue(f"expected exactly one of {_FORMS}")
        kind, what = next(iter(value.items()))
        return cls._from_table(kind, what, base)

    @classmethod
    def _from_table(cls, kind: Literal["env", "file", "command", "keyring"], what: object, base: Path) -> SecretSource:
        if kind == "command":
            return cls(kind, **_command(what), folder=base)
        if not isinstance(what, str) or not what or "\0" in what:
            raise WrongValue(f"{kind} must be text that is not empty")
        if kind == "env" and "=" in what:
            raise WrongValue("env must be the name of an environment variable")
        if kind == "file":
            try:
                what = str(base / Path(what).expanduser())
            except RuntimeError:
                raise WrongValue("file begins with ~ of a user whose home is not known") from None
        return cls(kind, what)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        text = {"type": "string", "minLength": 1}
        values = {"env": text, "file": text, "keyring": text, "command": {"anyOf": [text, {"type": "array", "items": text, "minItems": 1}]}}
        tables = [{"type": "object", "properties": {key: value}, "required": [key], "additionalProperties": False} for key, value in values.items()]
        return {"anyOf": [text, *tables]}


def _command(what: object) -> dict[str, Any]:
    import shlex

    try:
        words = shlex.split(what) if isinstance(what, str) else what
    except ValueError as error:
        raise WrongValue(f"command cannot be split into words: {error}") from None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word and "\0" not in word for word in words):
        raise WrongValue("command must be text, or a list of texts, that is not empty")
    words[0] = os.path.expanduser(words[0])  # noqa: PTH111 (a bare program name must stay one)
    return {"what": words[0], "command": tuple(words)}


def without_final_newline(text: str) -> str:
    """`text` without one final LF or CRLF; all else, blanks included, may belong to the password."""
    return text[: -2 if text.endswith("\r\n") else -1] if text.endswith("\n") else text


def check(named: Iterable[tuple[str, SecretSource]]) -> list[SecretError]:
    """Everything that is wrong with these (key, source) pairs, as far as it can be known without running a command."""
    return [problem for where, source in named if (problem := source.problem(where))]


def redact(text: str, secrets: Iterable[Secret]) -> str:
    """`text` with every secret in it hidden, also where it stands URL-quoted, JSON-escaped or in base64."""
    forms: set[str] = set()
    for secret in secrets:
        plain = secret.reveal()
        encoded = base64.b64encode(plain.encode()).decode("ascii")
        forms |= {plain, urllib.parse.quote(plain, safe=""), json.dumps(plain)[1:-1], repr(plain)[1:-1], encoded}
    for form in sorted(filter(None, forms), key=len, reverse=True):
        # inside other words a short one is chance, and the gaps would spell it out
        pattern = rf"(?<!\w){re.escape(form)}(?!\w)" if len(form) < _SHORT else re.escape(form)
        text = re.sub(pattern, _HIDDEN, text)
    return text
