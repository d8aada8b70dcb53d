"""What a section's keys mean, as told below each of them in its source.

Read only for those who ask, a mistake in a profile or the schema: reading and parsing the source would be a fifth of the time it takes to start.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections an annotation speaks of, however wrapped."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models(argument)


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """By field. Nothing where the source is not at hand."""
    told: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if issubclass(one, BaseModel) and one.__module__.startswith(__package__):
            try:
                [section] = ast.parse(textwrap.dedent(inspect.getsource(one))).body
            except OSError:
                continue
            told.update(_below_keys(section))
    return told


def _below_keys(section: ast.stmt) -> Iterator[tuple[str, str]]:
    assert isinstance(section, ast.ClassDef)
    for key, text in itertools.pairwise(section.body):
        match key, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                yield name, inspect.cleandoc(said)


def describe(root: type[BaseModel]) -> None:
    """Puts the descriptions of all sections where pydantic's schema finds them."""
    for model in _inner_first(root, set()):
        for name, text in descriptions(model).items():
            if name in model.model_fields:
                model.model_fields[name].description = text
        model.model_rebuild(force=True)


def _inner_first(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    seen.add(model)
    for info in model.model_fields.values():
        for inner in models(info.annotation):
            if inner not in seen:
                yield from _inner_first(inner, seen)
    yield model
