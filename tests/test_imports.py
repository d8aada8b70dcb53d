"""Start-up stays fast: the command line loads no protocol library before a command needs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("paramiko", "fabric", "invoke", "imapclient", "boto3", "botocore", "cryptography", "pathspec", "keyring", "tqdm", "asyncio", "moto")
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
    assert "pydantic" not in modules
    assert not [heavy for heavy in HEAVY if heavy in modules]


def test_the_command_line_keeps_its_import_budget() -> None:
    # Counted in modules, not in seconds: the same on every machine and under any load.
    assert len(loaded_by("hostbackup.cli.main")) < BUDGET_MODULES


def test_every_module_can_be_imported_alone() -> None:
    """No cycle hides behind the order in which the tests happen to import."""
    program = (
        "import importlib, pkgutil, subprocess, sys, hostbackup\n"
        "names = [info.name for info in pkgutil.walk_packages(hostbackup.__path__, 'hostbackup.') if not info.name.endswith('__main__')]\n"
        "for name in names:\n"
        "    for loaded in [one for one in sys.modules if one.startswith('hostbackup')]:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
        "print(len(names))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_a_backup_of_web_trees_loads_nothing_of_mail() -> None:
    modules = loaded_by("hostbackup.jobs.backup")
    assert not [
        module for module in modules if module.startswith(("hostbackup.protocols.imap", "hostbackup.places.mail", "hostbackup.jobs.backup_mail"))
    ]
