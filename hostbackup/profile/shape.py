"""What a section of a profile is: a class whose annotations say which values its keys take. Tables are read into it, and all that is wrong is told.

Made here, since little is needed, and a library that validates anything is a third of the time of a backup in which nothing changed: pydantic took
100 ms to load, and 70 ms to learn what a profile is. Here a class is looked at when a profile has the section.
"""

from __future__ import annotations

import datetime
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast, dataclass_transform

from hostbackup.errors import WrongValue
from hostbackup.secrets import SecretSource

At = tuple[str | int, ...]
"""Keys and positions that lead to a value, from the top of the profile."""

_MISSING: Any = object()
_WRONG: Any = object()


# -- what annotations can say beside a type -------------------------------------------------------------------------------------------------


class Before:
    """Turns what stands in the file into what the type takes; given the folder that paths are relative to. May raise WrongValue."""

    def __init__(self, change: Callable[[object, Path], object]) -> None:
        self.change = change


class After:
    """Looks at a value of the right type, and gives it or a better one. May raise WrongValue."""

    def __init__(self, check: Callable[[Any], object]) -> None:
        self.check = check


class Range:
    """Bounds of a number: `least` and `most` belong to it, `above` does not."""

    def __init__(self, *, least: float | None = None, most: float | None = None, above: float | None = None) -> None:
        self.least, self.most, self.above = least, most, above

    def expected(self, value: float) -> str:
        """What was expected instead; "" where the value is in it."""
        if self.least is not None and not value >= self.least:
            return f"at least {self.least}"
        if self.above is not None and not value > self.above:
            return f"more than {self.above}"
        return f"at most {self.most}" if self.most is not None and not value <= self.most else ""


class NotEmpty:
    """Of a list: there is something in it."""


class Called:
    """The name that the key has in the file, where Python cannot have it."""

    def __init__(self, name: str) -> None:
        self.name = name


class OneOf:
    """Tells by a table's keys which section of several it is. May raise WrongValue."""

    def __init__(self, choose: Callable[[object], type[Section]]) -> None:
        self.choose = choose


class Schema:
    """What the JSON Schema says of such a value, where the type does not."""

    def __init__(self, **schema: Any) -> None:
        self.schema = schema


# -- sections -------------------------------------------------------------------------------------------------------------------------------


class _Made:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def made(*, default_factory: Callable[[], Any]) -> Any:
    """A default that is made anew for each section."""
    return _Made(default_factory)


Function = TypeVar("Function")


def before(function: Function) -> Function:
    """Marks a class method that is given what stands in the file, whatever it is, and gives what is to be read instead. May raise WrongValue."""
    cast(Any, function).__func__.when = "before"
    return function


def after(function: Function) -> Function:
    """Marks a method that looks at the whole section once each key is right. May raise WrongValue."""
    cast(Any, function).when = "after"
    return function


class Key:
    """One key of a section: its attribute's name, its name in the file, what it takes, and its default."""

    __slots__ = ("annotation", "called", "default", "name")

    def __init__(self, name: str, annotation: Any, default: Any) -> None:
        self.name = name
        self.annotation = annotation
        self.default = default
        self.called = next((mark.name for mark in marks(annotation) if isinstance(mark, Called)), name)

    @property
    def required(self) -> bool:
        return self.default is _MISSING


def marks(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation)[1:] if typing.get_origin(annotation) is Annotated else ()


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(made,))
class Section:
    """What all sections have in common: no unknown keys, no conversions, no changes. A key that was not told is its class's attribute."""

    _known: ClassVar[dict[str, Key]]
    _hooks: ClassVar[dict[str, list[Any]]]

    def __init__(self, **told: Any) -> None:
        mine = self.__dict__
        mine.update(told)
        mine["_told"] = frozenset(told)
        for name, key in self.keys().items():
            if name not in told and isinstance(key.default, _Made):
                mine[name] = key.default.make()

    @classmethod
    def keys(cls) -> dict[str, Key]:
        """All keys by their attributes' names, those of a base first."""
        if "_known" not in cls.__dict__:
            hints = typing.get_type_hints(cls, include_extras=True)
            cls._known = {name: Key(name, told, getattr(cls, name, _MISSING)) for name, told in hints.items() if not name.startswith("_")}
        return cls._known

    @classmethod
    def hooks(cls, when: Literal["before", "after"]) -> list[Any]:
        """The functions that are marked so, those of a base first."""
        if "_hooks" not in cls.__dict__:
            found = {name: getattr(one, "__func__", one) for base in reversed(cls.__mro__) for name, one in vars(base).items()}
            cls._hooks = {which: [one for one in found.values() if getattr(one, "when", "") == which] for which in ("before", "after")}
        return cls._hooks[when]

    @property
    def given(self) -> frozenset[str]:
        """The keys that were told, be it in the file or by a function that is marked `before`."""
        return cast("frozenset[str]", self.__dict__["_told"])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is not to be changed")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Section) and type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in zip(self.keys(), self._values(), strict=True))})"


# -- reading --------------------------------------------------------------------------------------------------------------------------------


class Problem:
    """Something that is wrong at a place: a key that is `unknown` or `missing`, a value of another type than `expected`, or what was `told` of it."""

    __slots__ = ("at", "kind", "text", "value")

    def __init__(self, at: At, kind: Literal["unknown", "missing", "expected", "told"], text: str = "", value: object = None) -> None:
        self.at = at
        self.kind = kind
        self.text = text
        self.value = value


Read = TypeVar("Read", bound=Section)


def read(section: type[Read], table: object, base: Path) -> tuple[Read | None, list[Problem]]:
    """The section that a table tells of, None where anything is wrong, and what is. `base`: what paths are relative to."""
    reading = _Reading(base)
    found = reading.section(section, table, ())
    return (None if found is _WRONG else found), reading.problems


def is_date(value: object) -> bool:
    return isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)


TOO_LARGE = 1 << 63  # TOML has no whole numbers beyond; Python has, and stumbles over those of thousands of digits
_DATE = "a date without quotes, such as 2026-11-25"
_PLAIN: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("text in quotes", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < TOO_LARGE),
    float: ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) >= TOO_LARGE),
    datetime.date: (_DATE, is_date),
    datetime.datetime: (_DATE, lambda value: isinstance(value, datetime.datetime)),
    Path: ("a path in quotes", lambda value: isinstance(value, Path)),
}


class _Reading:
    """Values are given as they are to be kept, _WRONG where something was told of them."""

    def __init__(self, base: Path) -> None:
        self.problems: list[Problem] = []
        self._base = base

    def section(self, section: type[Section], value: object, at: At) -> Any:
        try:
            for change in section.hooks("before"):
                value = change(section, value)
        except WrongValue as error:
            return self._told(at, error, value)
        if not isinstance(value, dict):
            return self._expected(at, "a table", value)
        problems = len(self.problems)
        told = {}
        keys = {key.called: key for key in section.keys().values()}
        for called, key in keys.items():
            if called in value:
                told[key.name] = self.value(key.annotation, value[called], (*at, called))
            elif key.required:
                self.problems.append(Problem((*at, called), "missing"))
        self.problems += [Problem((*at, called), "unknown") for called in value if called not in keys]
        if len(self.problems) > problems:
            return _WRONG
        read = section(**told)
        try:
            for check in section.hooks("after"):
                check(read)
        except WrongValue as error:
            return self._told(at, error, value)
        return read

    def value(self, annotation: Any, value: object, at: At) -> Any:
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            return self._marked(annotation, value, at)
        if origin in (typing.Union, types.UnionType):
            return self._any_of([one for one in typing.get_args(annotation) if one is not types.NoneType], value, at)
        if origin is Literal:
            choices = typing.get_args(annotation)
            return value if isinstance(value, str) and value in choices else self._expected(at, _or([repr(choice) for choice in choices]), value)
        if origin is tuple:
            return self._list(typing.get_args(annotation)[0], value, at)
        if origin is dict:
            return self._table(typing.get_args(annotation)[1], value, at)
        if annotation is SecretSource:
            try:
                return SecretSource.parse(value, self._base)
            except WrongValue as error:
                return self._told(at, error, value)
        if issubclass(annotation, Section):
            return self.section(annotation, value, at)
        expected, fits = _PLAIN[annotation]
        if not fits(value):
            return self._expected(at, expected, value)
        return float(cast(float, value)) if annotation is float else value

    def _marked(self, annotation: Any, value: object, at: At) -> Any:
        kind, *found = typing.get_args(annotation)
        try:
            for mark in found:
                if isinstance(mark, Before):
                    value = mark.change(value, self._base)
                elif isinstance(mark, OneOf):
                    kind = mark.choose(value)
            read = self.value(kind, value, at)
            for mark in found:
                if read is _WRONG:
                    break
                if isinstance(mark, After):
                    read = mark.check(read)
                elif isinstance(mark, Range) and (expected := mark.expected(read)):
                    read = self._expected(at, expected, read)
                elif isinstance(mark, NotEmpty) and not read:
                    read = self._expected(at, "a list that is not empty", value)
        except WrongValue as error:
            return self._told(at, error, value)
        return read

    def _any_of(self, kinds: list[Any], value: object, at: At) -> Any:
        """The first kind that the value is of; where it is none, what is told of it in words, else what the first expects."""
        problems = len(self.problems)
        for kind in kinds:
            read = self.value(kind, value, at)
            if read is not _WRONG:
                del self.problems[problems:]
                return read
        if len(kinds) > 1:
            tried = self.problems[problems:]
            self.problems[problems:] = [next((one for one in tried if one.kind == "told"), tried[0])]
        return _WRONG

    def _list(self, kind: Any, value: object, at: At) -> Any:
        if not isinstance(value, list | tuple):  # TOML has lists, never tuples
            return self._expected(at, "a list, [ … ]", value)
        read = tuple(self.value(kind, one, (*at, number)) for number, one in enumerate(value))
        return _WRONG if _WRONG in read else read

    def _table(self, kind: Any, value: object, at: At) -> Any:
        if not isinstance(value, dict):
            return self._expected(at, "a table", value)
        read = {key: self.value(kind, one, (*at, key)) for key, one in value.items()}
        return _WRONG if _WRONG in read.values() else read

    def _expected(self, at: At, what: str, value: object) -> Any:
        self.problems.append(Problem(at, "expected", what, value))
        return _WRONG

    def _told(self, at: At, error: WrongValue, value: object) -> Any:
        self.problems.append(Problem(at, "told", str(error), value))
        return _WRONG


def _or(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections an annotation speaks of, however wrapped."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from sections(argument)
