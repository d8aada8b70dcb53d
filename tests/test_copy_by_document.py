"""Makes a vault's folders of a copy by docs/vault-format.md, section 10, and common tools alone. Only the program that writes it knows hostbackup."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

WRITE = textwrap.dedent(
    """
    import pathlib, sys
    from hostbackup.jobs.copy import CopyRun
    from hostbackup.jobs.result import Result
    from hostbackup.vault.disk import FolderStore
    from hostbackup.vault.packs import bring
    from hostbackup.vault.packs.seal import Recipients
    from tests.support.sample_vault import make_vault
    bring.SMALL = 10_000
    root = pathlib.Path(sys.argv[1])
    recipients = Recipients(sys.argv[2:]) if sys.argv[2:] else None
    with make_vault(root / "vault") as vault, CopyRun(vault, FolderStore(root / "usb"), Result(), name="usb", recipients=recipients) as run:
        run.run()
    """
)
OPEN = textwrap.dedent(
    """
    set -eu
    cp -r usb opened && cd opened
    find . -name '*.age' | while read -r file; do age -d -i ../key.txt -o "${file%.age}" "$file"; done
    find packs -name '*.tar' -exec tar -xf {} \\;
    find objects manifests -name '*.zst' -exec zstd -q -d --rm {} +
    [ ! -d large ] || find large -type f ! -name '*.age' | while read -r file; do
      digest=$(sha256sum < "$file" | cut -c 1-64)
      folder=objects/$(printf %.2s "$digest")
      mkdir -p "$folder" && mv "$file" "$folder/$digest"
    done
    """
)


def contents(root: Path) -> dict[str, bytes]:
    return {f"{kind}/{path.name}": path.read_bytes() for kind in ("objects", "manifests") for path in (root / kind).rglob("*") if path.is_file()}


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "encrypted"])
def test_a_copy_becomes_a_vault_by_common_tools(tmp_path: Path, sealed: bool) -> None:
    (tmp_path / "usb").mkdir()
    keys: list[str] = []
    if sealed:
        subprocess.run(["age-keygen", "-o", "key.txt"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
        keys = re.findall(r"age1\w+", (tmp_path / "key.txt").read_text())
    here = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path), *keys], cwd=here, check=True, timeout=120)
    told = json.loads((tmp_path / "usb/format.json").read_text())
    assert (told["layout"], told["version"], told.get("recipients", [])) == ("hostbackup copy", 2, keys)
    for file in (tmp_path / "usb").rglob("*.tar*"):
        assert file.name.partition(".")[0] == hashlib.sha256(file.read_bytes()).hexdigest()
    subprocess.run(["sh", "-c", OPEN], cwd=tmp_path, check=True, timeout=120)
    found = contents(tmp_path / "opened")
    assert found == contents(tmp_path / "vault")
    assert all(hashlib.sha256(data).hexdigest() == name.partition("/")[2] for name, data in found.items())
    [snapshot] = (tmp_path / "vault/snapshots").iterdir()
    assert (tmp_path / "opened/snapshots" / snapshot.name).read_bytes() == snapshot.read_bytes()
    [index] = (tmp_path / "opened/index").glob("*.jsonl")
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    assert rows[0] == {"type": "index", "version": 1}
    for row in rows[1:]:
        stored = (tmp_path / "usb" / row["key"]).read_bytes()
        assert (row["size"], row["sha256"]) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert {f"{row['kind']}/{member[0]}" for row in rows[1:] for member in row["members"]} == set(found)
