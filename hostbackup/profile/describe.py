"""What a section's keys mean, as told below each of them in its source.

Read only for those who ask, a mistake in a profile or the schema: reading and parsing the source would be a fifth of the time it takes to start.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator

from hostbackup.profile.shape import Section


def descriptions(model: type[Section]) -> dict[str, str]:
    """By field. Nothing where the source is not at hand."""
    told: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if issubclass(one, Section) and one.__module__.startswith(__package__):
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
