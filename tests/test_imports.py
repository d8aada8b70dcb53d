"""Start-up stays fast: the command line loads no protocol library before a command needs it."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import pytest

import hostbackup

ROOT = Path(hostbackup.__file__).parent

HEAVY = (
    "paramiko",
    "fabric",
    "invoke",
    "imapclient",
    "boto3",
    "botocore",
    "cryptography",
    "pathspec",
    "keyring",
    "tqdm",
    "asyncio",
    "moto",
    "pydantic",
)
LIGHT = ("hostbackup.model", "hostbackup.errors", "hostbackup.osal", "hostbackup.places.base")
BUDGET_MODULES = 300


def loaded_by(module: str) -> set[str]:
    """Every module that a fresh interpreter has loaded after importing one."""
    program = f"import json, sys\nimport {module}\njson.dump(sorted(sys.modules), sys.stdout)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=60)
    return set(json.loads(done.stdout))


def test_the_command_line_loads_no_protocol_library() -> None:
    modules = loaded_by("hostbackup.cli.main")
    assert not [module for module in HEAVY if module in modules]


def test_loading_a_profile_module_loads_no_protocol_library() -> None:
    modules = loaded_by("hostbackup.profile")
    assert not [module for module in HEAVY if module in modules]


@pytest.mark.parametrize("module", LIGHT)
def test_the_shared_vocabulary_costs_next_to_nothing(module: str) -> None:
    modules = loaded_by(module)
    assert not [heavy for heavy in HEAVY if heavy in modules]


def test_the_command_line_keeps_its_import_budget() -> None:
    # Counted in modules, not in seconds: the same on every machine and under any load.
    assert len(loaded_by("hostbackup.cli.main")) < BUDGET_MODULES


def _loaded_by(statements: Iterable[ast.AST], package: str) -> Iterator[str]:
    """The names that are imported while a module is loaded: not those in functions, nor those for type checkers alone."""
    for one in statements:
        if isinstance(one, ast.Import):
            yield from (alias.name for alias in one.names)
        elif isinstance(one, ast.ImportFrom):
            base = importlib.util.resolve_name("." * one.level + (one.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in one.names)
        elif isinstance(one, ast.If) and "TYPE_CHECKING" in ast.unparse(one.test):
            yield from _loaded_by(one.orelse, package)
        elif not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _loaded_by(ast.iter_child_nodes(one), package)


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _needs(name: str, path: Path, known: Container[str]) -> set[str]:
    """What must be loaded whole before a module is: what it imports, and the packages around that, except those that the module itself is in."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    needed = set()
    for told in _loaded_by(ast.parse(path.read_text("utf-8")).body, package):
        parts = told.split(".")
        needed |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return {one for one in needed if one in known and one != name and not name.startswith(f"{one}.")}


def test_every_module_can_be_imported_alone() -> None:
    """No cycle hides behind the order in which the tests happen to import: there is none, so whatever can be imported in one order can in any."""
    modules = _modules()
    order = list(graphlib.TopologicalSorter({name: _needs(name, path, modules) for name, path in modules.items()}).static_order())  # or CycleError
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    names = sorted(name for name in modules if not name.endswith("__main__"))
    assert len(names) > 150
    assert order.index("hostbackup.errors") < order.index("hostbackup.vault.vault") < order.index("hostbackup.jobs.backup")
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "needed"),
    [
        ("import b.c", {"b", "b.c"}),
        ("from b import c as d", {"b", "b.c"}),
        ("from . import d", {"a.d"}),
        ("from .d import x", {"a.d"}),
        ("try:\n    import e\nexcept ImportError:\n    pass", {"e"}),
        ("class C:\n    import e", {"e"}),
        ("def f():\n    import e", set()),
        ("if TYPE_CHECKING:\n    import e\nelse:\n    import b", {"b"}),
    ],
)
def test_what_a_module_needs_is_found(tmp_path: Path, source: str, needed: set[str]) -> None:
    file = tmp_path / "m.py"
    file.write_text(source)
    assert _needs("a.m", file, {"a", "a.m", "a.d", "b", "b.c", "e"}) == needed


def test_a_backup_of_web_trees_loads_nothing_of_mail() -> None:
    modules = loaded_by("hostbackup.jobs.backup")
    assert not [
        module for module in modules if module.startswith(("hostbackup.protocols.imap", "hostbackup.places.mail", "hostbackup.jobs.backup_mail"))
    ]
