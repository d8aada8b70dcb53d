"""What every bench stands on: a folder for everything that is made, an environment without a person's own settings, programs."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = "results"  # the folder for those of single runs


@dataclass(frozen=True)
class Ground:
    """`folder` holds everything that is made; `delay_ms` is the round trip to the servers."""

    folder: Path
    delay_ms: float

    @property
    def environment(self) -> dict[str, str]:
        """A person's own configuration and agent have no part in it."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in ("SSH_AUTH_SOCK", "RSYNC_RSH", "PYTHONDONTWRITEBYTECODE") and not key.startswith(("RCLONE_", "XDG_"))
        }
        return kept | {"HOME": str(self.folder / "home")}

    def profile(self, folder: Path, vault: Path, sections: Sequence[str]) -> Path:
        """A hostbackup profile in `folder`."""
        path = folder / "move.toml"
        path.write_text("\n".join(['name = "bench"', f'vault = "{vault}"', *sections, ""]))
        path.chmod(0o600)
        return path


def program(name: str) -> str:
    """Where a program is: beside this Python, else on the path; "" if nowhere."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or ""


@contextlib.contextmanager
def working_folder(keep: Path | None) -> Iterator[Path]:
    """`keep`, of which all but single runs' results stays for the next time; without it a folder that goes."""
    with contextlib.ExitStack() as stack:
        folder = keep.absolute() if keep else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostbackup-bench-")))
        if shlex.quote(str(folder)) != str(folder):
            raise ValueError("the folder's name has to be plain: the programs that are compared quote names in different ways")
        (folder / "home").mkdir(parents=True, exist_ok=True)
        stack.callback(shutil.rmtree, folder / RESULTS, ignore_errors=True)
        yield folder
