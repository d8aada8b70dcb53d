"""Which names a profile leaves out. git itself is the witness for what a pattern means."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostbackup.errors import UsageError
from hostbackup.places.exclude import Excludes

Tree = dict[bytes, bool]  # path -> whether it is a folder


def left_out(patterns: Sequence[str], tree: Tree) -> set[bytes]:
    """As a place goes about it: what is in a folder that is left out is never asked for."""
    excludes = Excludes(patterns)
    out: set[bytes] = set()
    for path in sorted(tree, key=lambda path: path.split(b"/")):
        if path.rpartition(b"/")[0] in out or excludes.matches(path, tree[path]):
            out.add(path)
    return out


def gits(folder: Path, patterns: Sequence[str], tree: Tree) -> set[bytes]:
    for inside in ("info", "objects", "refs"):
        (folder / ".git" / inside).mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git" / "info" / "exclude").write_text("\n".join(patterns) + "\n", encoding="utf-8")
    for path, is_dir in tree.items():  # git looks at what is there to tell a folder from a file
        where = folder / os.fsdecode(path)
        if is_dir:
            where.mkdir(parents=True, exist_ok=True)
        else:
            where.parent.mkdir(parents=True, exist_ok=True)
            where.touch()
    command = ["git", "-c", f"core.excludesFile={os.devnull}", "check-ignore", "--no-index", "--stdin", "-z"]
    ran = subprocess.run(command, cwd=folder, input=b"".join(path + b"\0" for path in tree), capture_output=True, timeout=60, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    return {path for path in ran.stdout.split(b"\0") if path}


def grown(paths: Sequence[bytes]) -> Tree:
    """The files, with the folders that lead to them."""
    tree: Tree = {}
    for path in paths:
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            tree[b"/".join(parts[:depth])] = True
    return tree | {path: False for path in paths if path not in tree}


TREE = grown(
    [
        b"cache/a",
        b"sub/cache/b",
        b"sub/file/cache",
        b"error.log",
        b"sub/deep/error.log",
        b"keep.log",
        b"foo/one",
        b"foo/keep",
        b"foo/bar/two",
        b"wp-content/uploads/2026/a.jpg",
        b"#notes",
        b"!bang",
        b"with space ",
        b"tilde~",
        b"[x]",
        "日本語/写真.jpg".encode(),
        "日本語/写真.jpg".encode("cp932"),
        b"caf\xe9.log",
        b"line\nfeed.log",
        b"error.log\n",
        b"a.log\n/in",
    ]
)

WORTH_TRYING = [
    ["cache/"],
    ["cache"],
    ["/cache"],
    ["*.log", "!keep.log"],
    ["foo/**", "!foo/keep"],
    ["foo/*", "!foo/keep"],
    ["foo/", "!foo/keep"],
    ["**/deep"],
    ["sub/**/error.log"],
    ["wp-content/uploads/20*/"],
    ["\\#notes", "\\!bang"],
    ["# a comment", ""],
    ["with space\\ "],
    ["*~", "\\[x\\]"],
    ["[!a-z]*"],
    ["日本語/*.jpg"],
    ["写真.jpg"],
    ["????.log"],
    ["*"],
    ["*", "!*/", "!*.jpg"],
    ["**"],
    ["*/"],
    ["/*/"],
    ["sub/*/cache"],
    ["**/cache/**"],
    ["/**/error.log"],
    ["foo", "!foo/**/"],
]


@pytest.mark.parametrize("patterns", WORTH_TRYING, ids=" ".join)
def test_patterns_mean_what_they_mean_to_git(tmp_path: Path, patterns: list[str]) -> None:
    assert left_out(patterns, TREE) == gits(tmp_path, patterns, TREE)


_names = st.sampled_from(["a", "b", "ab", "a.log", "foo", "b c"])
_pieces = st.one_of(_names, st.sampled_from(["*", "**", "?", "a*", "*.log", "[ab]", "[!a]"]))
_patterns = st.builds(
    lambda negated, rooted, pieces, folder: ("!" if negated else "") + ("/" if rooted else "") + "/".join(pieces) + ("/" if folder else ""),
    st.booleans(),
    st.booleans(),
    st.lists(_pieces, min_size=1, max_size=3),
    st.booleans(),
)
_trees = st.lists(st.lists(_names.map(str.encode), min_size=1, max_size=4).map(b"/".join), min_size=1, max_size=8).map(grown)


@settings(max_examples=60, deadline=None)
@given(st.lists(_patterns, min_size=1, max_size=4), _trees)
def test_any_patterns_mean_what_they_mean_to_git(tmp_path_factory: pytest.TempPathFactory, patterns: list[str], tree: Tree) -> None:
    assert left_out(patterns, tree) == gits(tmp_path_factory.mktemp("git"), patterns, tree)


@pytest.mark.parametrize("pattern", ["!", "/", "\\", "[a"])
def test_what_can_match_nothing_is_an_error_that_names_it(pattern: str) -> None:
    with pytest.raises(UsageError) as told:
        Excludes(["fine", pattern])
    assert repr(pattern) in told.value.reason


def test_without_patterns_nothing_is_left_out() -> None:
    assert not Excludes()
    assert not Excludes(["", "# only this"])
    assert not Excludes().matches(b"anything", True)
    assert not Excludes(["*"]).matches(b"", True), "the root itself stays"
