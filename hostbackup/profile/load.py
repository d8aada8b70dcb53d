"""From a file's name to a validated profile."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from hostbackup import osal
from hostbackup.errors import ProfileError
from hostbackup.profile.copies import BucketCopy
from hostbackup.profile.mail import Mail
from hostbackup.profile.root import Profile
from hostbackup.profile.shape import At, read
from hostbackup.profile.trees import Ssh

FOLDER = Path("profiles")
_AT_LINE = re.compile(r"\s*\(at line (\d+), column (\d+)\)$")


def find(profile: str | Path) -> Path:
    """The file meant by a path, or by a name in ./profiles/, with or without .toml. Raises ProfileError."""
    path = Path(profile).expanduser() if str(profile).startswith("~") else Path(profile)
    candidates = [path]
    if not path.is_absolute():
        candidates += [FOLDER / path, FOLDER / f"{path}.toml"]
    for candidate in candidates:
        if _is(candidate.is_file):
            return candidate
    known = sorted(file.stem for file in FOLDER.glob("*.toml"))
    hint = f"profiles here: {', '.join(known)}" if known else "give the path of a profile, or its name in ./profiles/"
    what = "is a folder, not a profile" if _is(path.is_dir) else "there is no such profile"
    raise ProfileError(what, where=ascii(str(profile))[1:-1], hint=hint)


def load(profile: str | Path, *, files: bool = True) -> Profile:
    """The profile, validated. Raises ProfileError, one line for each thing that is wrong.

    `files` False: without the files it names (keys, lists, certificates), which only those need who reach a server. Whoever has nothing left
    but the vault and the profile can still look into the one by the other.
    """
    file = find(profile)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ProfileError(f"cannot be read: {error.strerror}", where=str(file)) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProfileError("is not UTF-8 text", where=f"{file}:{data[: error.start].count(10) + 1}", hint="save it again as UTF-8") from None
    return parse(text, file, files=files)


def parse(text: str, file: Path, *, files: bool = True) -> Profile:
    """As `load`, from the text of `file`; relative paths are relative to the folder of `file`."""
    try:
        table = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        at = _AT_LINE.search(str(error))
        line = at[1] if at else str(text.count("\n") + 1)
        raise ProfileError(f"not TOML: {_AT_LINE.sub('', str(error))}" + (f", column {at[2]}" if at else ""), where=f"{file}:{line}") from None
    except (ValueError, RecursionError):  # what Python has no patience for, rather than TOML
        raise ProfileError("a number in it has thousands of digits, or lists and tables are nested by the hundred", where=str(file)) from None
    table.setdefault("name", file.stem)
    profile, wrong = read(Profile, table, file.absolute().parent)
    if profile is not None:
        profile.was_read_from(file)
        problems = [*(_missing_files(profile) if files else ()), *_readable_literals(profile)]
        if not problems:
            return profile
    else:
        from hostbackup.profile.explain import explain

        problems = [(one.at, explain(one, Profile)) for one in wrong]
    raise _error(problems, file, text)


def _error(problems: list[tuple[At, str]], file: Path, text: str) -> ProfileError:
    """One error for all problems, in the order of the file. `where` is the first one's place, so that each stands on a line of its own."""
    from hostbackup.profile.explain import dotted, line_of, positions

    lines = positions(text)
    told: list[tuple[int, str, str]] = []
    for key, sentence in problems:
        line = line_of(key, lines)
        name = dotted(key)
        told.append((line or 0, f"{file}:{line}" if line else str(file), f"{name}: {sentence}" if name else sentence))
    told.sort(key=lambda problem: problem[0])
    _, where, first = told[0]
    return ProfileError("\n".join([first, *(f"{place}: {sentence}" for _, place, sentence in told[1:])]), where=where)


def _missing_files(profile: Profile) -> Iterator[tuple[At, str]]:
    """Files the profile names and that every command may rely on. Folders are looked for when they are used: a disk may be plugged in later."""
    named: list[tuple[At, Path | None]] = []
    for side, ssh in (("old", profile.old.ssh), ("new", profile.new.ssh)):
        if isinstance(ssh, Ssh):
            named.append(((side, "ssh", "key"), ssh.key))
    for side, kind, mail in (("old", "imap", profile.old.imap), ("old", "pop3", profile.old.pop3), ("new", "imap", profile.new.imap)):
        if isinstance(mail, Mail):
            named += [((side, kind, "accounts"), mail.accounts), ((side, kind, "ca_file"), mail.ca_file)]
    named += [(("copy", number, "ca_file"), copy.ca_file) for number, copy in enumerate(profile.copies) if isinstance(copy, BucketCopy)]
    named.append((("mail", "expected"), profile.mail.expected))
    if profile.domain:
        named.append((("domain", "zone"), profile.domain.zone))
    for key, path in named:
        if path is not None and not _is(path.is_file):
            yield key, f"there is no file {path}"


def _is(kind: Callable[[], bool]) -> bool:
    """False also where nobody can tell: the name is longer than names are, or the folder is closed to this user."""
    try:
        return kind()
    except OSError:
        return False


def _readable_literals(profile: Profile) -> Iterator[tuple[At, str]]:
    literals = [key for key, source in profile.secrets() if source.literal is not None]
    if literals and profile.file.exists() and not osal.private_to_owner(profile.file):
        where = tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", literals[0]))
        yield where, f"a secret stands here and the file can be read by others; chmod 600 {profile.file}"
