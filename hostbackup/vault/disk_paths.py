"""Where an object lies in a folder on a disk: below it, whatever its key or somebody who writes there has in mind."""

from __future__ import annotations

from pathlib import Path, PurePath

from hostbackup.vault.stores import valid_key

INCOMING = "incoming"  # for files on their way
_NOT_OURS = ("$recycle.bin", "lost+found", "system volume information")  # what systems put on a disk by themselves


def reserved(name: str) -> bool:
    """Whether a name at the top of the folder is none that an object's key can begin with: that of files on their way, or a system's own."""
    return name.startswith(".") or name.lower() in (INCOMING, *_NOT_OURS)


def path_of(root: Path, key: str) -> Path:
    """Raises ValueError, in words, for what is no name of this folder's, also where a symlink would lead away from it."""
    names = key.split("/")
    if not valid_key(key) or reserved(names[0]) or PurePath(key).parts != tuple(names):  # a system may take more marks for `/` than we do
        raise ValueError("no file of this folder can be called so")
    folder = root
    for name in names[:-1]:
        folder = folder / name
        if folder.is_symlink():
            raise ValueError(f"{folder} is a symlink, which is never followed")
    return folder / names[-1]
