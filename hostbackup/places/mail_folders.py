"""Which folder of the new server an old folder's messages go to. Names in, names out; what a server says of a name is brought in by its caller.

In order: what the profile says, what was decided before, INBOX, special use (told by both servers, or recognised by name), and else the same
path with the new server's prefix and separator. No two old folders lead to one, unless the profile says so: where they would meet, or the server
does not take a name, the later one is called otherwise, and all that is below it follows. Names that need no change come first, then the others in
the order of the old names; folders that are added later find all earlier names taken.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hostbackup.model import Folder, name_from_json, name_json
from hostbackup.places.mail_names import USES, Style, fitted, flat, numbered, same, special_use_by_name
from hostbackup.protocols.imap import names

_ALIKE = 9  # folders of one name that are told apart by numbers
_TRIES = 12  # names that a server may refuse for one folder
Level = tuple[bytes, bytes]  # the old name down to a level, and that level alone


@dataclass(frozen=True, slots=True)
class Mapped:
    """One row of the map. `replaced` holds the levels that had to change, as (old, new) bytes; `why` says in words why the name is another one."""

    old: bytes
    new: bytes
    rule: str  # "profile", "earlier", "inbox", "special-use", "name" or "path"
    special_use: str = ""
    replaced: tuple[tuple[bytes, bytes], ...] = ()
    why: str = ""
    stood: bool = False  # the new server has shown it
    first: str = ""  # the rule that an earlier run decided by

    def as_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {**name_json(self.old, "old"), **name_json(self.new, "new"), "rule": self.rule, "special_use": self.special_use}
        if self.replaced:
            row["replaced"] = [{**name_json(old, "old"), **name_json(new, "new")} for old, new in self.replaced]
        return row | ({"why": self.why} if self.why else {}) | ({"stood": True} if self.stood else {})

    def as_record(self) -> dict[str, Any]:
        """For the runs to come: with the rule that it was decided by first."""
        return self.as_json() | {"rule": self.first or self.rule}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Mapped:
        row = dict(record)
        replaced = tuple((name_from_json(part, "old"), name_from_json(part, "new")) for part in row.get("replaced", ()))
        facts = str(row["rule"]), str(row.get("special_use", "")), replaced, str(row.get("why", "")), bool(row.get("stood"))
        return cls(name_from_json(row, "old"), name_from_json(row, "new"), *facts)


@dataclass(slots=True, eq=False)
class _Choice:
    """What was decided of an old folder, and what was tried before."""

    folder: Folder
    levels: tuple[Level, ...]
    rule: str
    new: bytes = b""
    special_use: str = ""
    style: Style = Style.AS_IT_IS
    number: int = 1
    why: str = ""
    earlier: Mapped | None = None
    stood: bool = False
    tried: set[bytes] = field(default_factory=set)


class FolderMap:
    """Old folders to new names.

    `named` is the profile's `[mail] folders`: readable names, levels divided by `/` or by the server's own separator. `earlier` are decisions
    of earlier runs, which hold so that a mailbox is not spread over two folders when the new server gets a new one. `new_folders` are those that
    the new server lists.
    """

    def __init__(
        self,
        *,
        old_prefix: bytes = b"",
        new_prefix: bytes = b"",
        new_separator: bytes = b"/",
        new_folders: Iterable[Folder] = (),
        named: Mapping[str, str] | None = None,
        earlier: Iterable[Mapped] = (),
    ) -> None:
        self._old_prefix = old_prefix
        self._new_prefix = new_prefix
        self._new_separator = new_separator
        self._named = {unicodedata.normalize("NFC", old): (old, new) for old, new in (named or {}).items()}
        self._uses = self._new_uses(list(new_folders))
        self._earlier = {row.old: row for row in earlier if row.rule != "profile"}
        self._choices: dict[bytes, _Choice] = {}
        self._owners: dict[bytes, bytes] = {same(b"INBOX", new_separator): b"INBOX"}  # new name -> the old folder whose messages are there
        self._homes: dict[bytes, bytes] = {}  # old name, of a folder or only above some -> where it is in the new hierarchy
        self._settlers: dict[bytes, bytes] = {}  # the same, backwards
        self._below_old: dict[bytes, list[_Choice]] = {}  # by old level the folders below it
        self._careful: set[bytes] = set()  # of those that are only above folders, the ones that were refused as they are
        for row in self._earlier.values():
            self._owners.setdefault(self._same(row.new), row.old)
        self.made: set[bytes] = set()  # names that were not there before this run
        self.unused = set(named or {})  # of the profile's names those that no old folder has

    @classmethod
    def between(
        cls,
        old_folders: Iterable[Folder],
        new_folders: Iterable[Folder],
        *,
        old_prefix: bytes,
        new_prefix: bytes,
        new_separator: bytes,
        named: Mapping[str, str] | None = None,
        earlier: Iterable[Mapped] = (),
    ) -> FolderMap:
        """The map from one server's folders to another's, with the old folders' rows worked out."""
        made = cls(old_prefix=old_prefix, new_prefix=new_prefix, new_separator=new_separator, new_folders=new_folders, named=named, earlier=earlier)
        made.add(old_folders)
        return made

    # -- asking -------------------------------------------------------------------------------------------------------------------------

    def target(self, folder: Folder) -> bytes:
        """The new server's wire name for an old folder."""
        return self._choice(folder).new

    def row(self, folder: Folder) -> Mapped:
        """The same, with the reason."""
        choice = self._choice(folder)
        before = choice.earlier
        if before is not None:
            why, first = choice.why or before.why, before.rule
            return Mapped(folder.name, choice.new, "earlier", before.special_use, before.replaced, why, choice.stood, first)
        return Mapped(folder.name, choice.new, choice.rule, choice.special_use, self._replaced(choice), self._why(choice), choice.stood)

    @property
    def rows(self) -> list[Mapped]:
        """All rows, for the journal and the report. Read from right to left they lead back, also where two old folders became one."""
        return [self.row(choice.folder) for choice in self._choices.values()]

    def folders(self) -> list[Folder]:
        """The old folders."""
        return [choice.folder for choice in self._choices.values()]

    def use(self, folder: Folder) -> str:
        """The special use that its folder at the new server has, or should have."""
        return self.row(folder).special_use

    def is_bound(self, folder: Folder) -> bool:
        """Whether its name was given by a person: there is no other one then, and others may have it too."""
        return self._choice(folder).rule == "profile"

    def was_taken_away(self, folder: Folder) -> bool:
        """Whether an earlier run saw it: where it is gone now, its owner wanted that."""
        before = self._choice(folder).earlier
        return before is not None and before.stood

    def is_free(self, name: bytes, folder: Folder) -> bool:
        """Whether no other old folder has this name at the new server, or a person wants them together."""
        return self.is_bound(folder) or self._owners.get(self._same(name), folder.name) == folder.name

    # -- deciding -----------------------------------------------------------------------------------------------------------------------

    def add(self, folders: Iterable[Folder]) -> None:
        """Decides for more old folders."""
        fresh = [_Choice(folder, self._levels(folder), "") for folder in folders if folder.name not in self._choices]
        for choice in fresh:
            self._by_decision(choice)
        self._by_use(fresh)
        paths = [choice for choice in fresh if not choice.rule]
        for choice in sorted(paths, key=lambda one: (bool(self._changes(one)), self._parts(one), one.folder.name)):
            choice.rule = "path"
            self._find_name(choice)
        self._choices |= {choice.folder.name: choice for choice in fresh}
        for choice in fresh:
            for above, _ in choice.levels[:-1]:
                self._below_old.setdefault(above, []).append(choice)

    def _choice(self, folder: Folder) -> _Choice:
        if folder.name not in self._choices:
            self.add([folder])
        return self._choices[folder.name]

    def _by_decision(self, choice: _Choice) -> None:
        """What the profile, an earlier run or RFC 3501 has decided."""
        folder, parts = choice.folder, self._parts(choice)
        use = folder.special_use or (special_use_by_name(names.display(parts[0])) if len(parts) == 1 else "")
        choice.special_use = use if use in USES else ""
        by_profile = next((self._named[spelling] for spelling in _spellings(folder, parts) if spelling in self._named), None)
        before = self._earlier.get(folder.name)
        if by_profile is not None:
            choice.rule, choice.new = "profile", self._from_text(by_profile[1])
            self.unused.discard(by_profile[0])
        elif before is not None:
            choice.rule, choice.new, choice.earlier, choice.stood = "earlier", before.new, before, before.stood
            self._remember_homes(choice, before)
        elif names.is_inbox(folder.name):
            choice.rule, choice.new, choice.special_use = "inbox", b"INBOX", ""
        if choice.rule:
            self._owners.setdefault(self._same(choice.new), folder.name)

    def _by_use(self, fresh: Sequence[_Choice]) -> None:
        """One old folder of each special use goes to the new server's folder of that use, or has it made; the others keep their names."""
        held = {row.special_use for row in self._earlier.values()} | {one.special_use for one in self._choices.values()}
        held |= {choice.special_use for choice in fresh if choice.rule}
        undecided = [choice for choice in fresh if not choice.rule and choice.special_use]
        given: set[str] = set()
        for choice in sorted(undecided, key=self._claim_to_use):
            use = choice.special_use
            there = self._uses.get(use)
            if use in given or (use in held if there is None else self._owners.get(self._same(there), choice.folder.name) != choice.folder.name):
                choice.special_use = ""
                continue
            given.add(use)
            if there is not None:
                choice.rule, choice.new = "special-use" if choice.folder.special_use else "name", there
                self._owners[self._same(there)] = choice.folder.name

    def _claim_to_use(self, choice: _Choice) -> tuple[object, ...]:
        """Before others comes what the old server told, what is called so there too, and what is nearer to the top."""
        called_otherwise = self._uses.get(choice.special_use) != self._new_prefix + choice.levels[-1][1]
        return not choice.folder.special_use, called_otherwise, len(choice.levels), choice.folder.name

    def _find_name(self, choice: _Choice) -> bool:
        """Takes the first name, from its style and number on, that is nobody's and was not refused. False where there is none."""
        for style in Style:
            if style < choice.style:
                continue
            for number in range(choice.number if style is choice.style else 1, _ALIKE + 1):
                name = self._name(choice, style, number)
                key, old = self._same(name), choice.folder.name
                if name in choice.tried or self._owners.get(key, old) != old or self._settlers.get(key, old) != old:
                    continue
                choice.new, choice.style, choice.number = name, style, number
                self._take(choice)
                return True
        return False

    def _take(self, choice: _Choice) -> None:
        old = choice.folder.name
        self._owners[self._same(choice.new)] = self._settlers[self._same(choice.new)] = old
        self._homes[old] = choice.new

    def _remember_homes(self, choice: _Choice, before: Mapped) -> None:
        """An earlier run's name tells where all above it is, so that what is added there later stands beside it."""
        between = self._new_separator or b"\0"
        if before.rule in ("special-use", "name") or before.new.removeprefix(self._new_prefix).count(between) != len(choice.levels) - 1:
            return
        place = before.new
        for old, _ in reversed(choice.levels):
            # What went to a folder for a use of its own leads nothing below it there.
            if not (before.special_use and old == before.old):
                self._homes.setdefault(old, place)
                self._settlers.setdefault(self._same(place), old)
            place = place.rpartition(between)[0]

    # -- what the new server says -------------------------------------------------------------------------------------------------------

    def stands(self, folder: Folder, name: bytes) -> None:
        """The new server shows this folder, by this spelling."""
        choice = self._choice(folder)
        if choice.new != name:
            choice.why = choice.why or f"the new server spells {_shown(choice.new)} so"
            choice.new = name
            self._owners.setdefault(self._same(name), folder.name)
            if folder.name in self._homes:
                self._homes[folder.name] = name
        choice.stood = True

    def another(self, folder: Folder, why: str, *, taken: bool = False) -> bool:
        """The folder cannot have its name. `taken`: somebody else has it, so that a number helps. False where there is no other name."""
        choice = self._choice(folder)
        last = choice.style is Style.DIGEST and not taken
        if choice.rule in ("profile", "inbox") or last or len(choice.tried) >= _TRIES:
            return False
        choice.tried.add(choice.new)
        choice.why = choice.why or why
        if choice.rule == "path":
            choice.style, choice.number = (choice.style, choice.number + 1) if taken else (Style(choice.style + 1), 1)
        choice.rule, choice.earlier = "path", None
        moving = [one for one in self._below_old.get(folder.name, ()) if one.rule == "path" and not one.stood]
        loose = {folder.name} | {old for one in moving for old, _ in one.levels[len(choice.levels) :]}
        if not taken:  # what it stands below may be to blame, unless something stands there
            above = [old for old, _ in choice.levels[:-1] if old not in self._choices]
            refused = {old for old in above if not any(one.stood for one in self._below_old[old])}
            self._careful |= refused
            loose |= refused
        for one in (choice, *moving):
            self._forget(self._owners, one.new, loose)
        for old in loose:
            self._forget(self._settlers, self._homes.pop(old, b""), loose)
        found = self._find_name(choice)
        for one, named in ((choice, found), *((one, self._find_name(one)) for one in moving)):
            if not named:  # it keeps the last one, which is nobody else's
                self._take(one)
        return found

    def _forget(self, owners: dict[bytes, bytes], name: bytes, loose: set[bytes]) -> None:
        if owners.get(self._same(name)) in loose:
            del owners[self._same(name)]

    # -- old names ----------------------------------------------------------------------------------------------------------------------

    def _levels(self, folder: Folder) -> tuple[Level, ...]:
        rest = folder.name.removeprefix(self._old_prefix) or folder.name
        parts = rest.split(folder.separator) if folder.separator else [rest]
        ends = len(folder.name) - len(rest)
        levels = []
        for part in parts:
            ends += len(part)
            levels.append((folder.name[:ends], part))
            ends += len(folder.separator)
        # Below INBOX is the top on a server whose folders all stand there, and the other way round.
        below_inbox = len(levels) > 1 and names.is_inbox(levels[0][0]) and self._new_prefix.upper().startswith(b"INBOX")
        return tuple(levels[1:] if below_inbox else levels)

    @staticmethod
    def _parts(choice: _Choice) -> list[bytes]:
        return [part for _, part in choice.levels]

    # -- new names ----------------------------------------------------------------------------------------------------------------------

    def _new_uses(self, folders: Sequence[Folder]) -> dict[str, bytes]:
        """Special use to folder at the new server: as it tells, else the only one that is called so."""
        uses: dict[str, bytes] = {}
        by_name: dict[str, list[bytes]] = {}
        for folder in folders:
            if folder.special_use in USES:
                uses.setdefault(folder.special_use, folder.name)
            name = folder.name.removeprefix(self._new_prefix)
            if not (folder.separator and folder.separator in name):
                by_name.setdefault(special_use_by_name(names.display(name)), []).append(folder.name)
        for use, found in by_name.items():
            if use and len(found) == 1:
                uses.setdefault(use, found[0])
        return uses

    def _name(self, choice: _Choice, style: Style, number: int) -> bytes:
        if style >= Style.FLAT:
            return self._new_prefix + numbered(flat(self._parts(choice), style, choice.folder.name), number)
        return self._below(choice.levels[:-1]) + numbered(fitted(choice.levels[-1][1], self._new_separator, style), number)

    def _below(self, levels: tuple[Level, ...]) -> bytes:
        """What the names of folders below an old level begin with. Old levels that are no folders have places of their own, too."""
        if not levels:
            return self._new_prefix
        old, part = levels[-1]
        if old not in self._homes:
            style = Style.CAREFUL if old in self._careful else Style.AS_IT_IS
            for number in range(1, 1000):
                place = self._below(levels[:-1]) + numbered(fitted(part, self._new_separator, style), number)
                if self._settlers.setdefault(self._same(place), old) == old:
                    break
            self._homes[old] = place
        return self._homes[old] + (self._new_separator or b"_")

    def _same(self, name: bytes) -> bytes:
        return same(name, self._new_separator)

    def _changes(self, choice: _Choice) -> list[tuple[bytes, bytes]]:
        fits = [(part, fitted(part, self._new_separator, choice.style)) for part in self._parts(choice)]
        return [(old, new) for old, new in fits if old != new]

    def _replaced(self, choice: _Choice) -> tuple[tuple[bytes, bytes], ...]:
        return tuple(self._changes(choice)) if choice.rule == "path" and choice.style < Style.FLAT else ()

    def _why(self, choice: _Choice) -> str:
        if choice.why or choice.rule != "path":
            return choice.why
        if choice.number > 1:
            return "another old folder has the name without the number there"
        odd = [_shown(old) for old, new in self._replaced(choice) if names.display(old) != names.display(new)]
        return f"what divides levels there, or cannot be in a name, stood in {', '.join(odd)}" if odd else ""

    def _from_text(self, text: str) -> bytes:
        """A name that a person wrote: with or without the new server's prefix, levels by `/` or by the new separator."""
        separator = self._new_separator.decode("latin-1") or "/"
        text = text.replace("/", separator)
        if text.strip(separator).upper() == "INBOX":
            return b"INBOX"
        levels = [level for level in text.removeprefix(names.display(self._new_prefix)).split(separator) if level]
        return self._new_prefix + (self._new_separator or b"_").join(fitted(names.encode(level), self._new_separator) for level in levels)


def _shown(name: bytes) -> str:
    return repr(names.display(name))


def _spellings(folder: Folder, parts: Sequence[bytes]) -> list[str]:
    """How a person may have written an old folder's name."""
    shown = [names.display(part) for part in parts]
    separator = folder.separator.decode("latin-1")
    spelled = [names.display(folder.name), separator.join(shown), "/".join(shown)]
    return [unicodedata.normalize("NFC", text) for text in spelled]
