"""Trees to move, made the same every time: a web site of small files, and single large files."""

from __future__ import annotations

import filecmp
import json
import math
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

SEED = 20261125
EPOCH = 1_600_000_000  # every file is older than any run: nothing counts as just written
_SPAN = 120_000_000  # seconds over which times are spread
_FILES_A_FOLDER = 14.2
_LARGEST = 8 << 20
_MARK = ".corpus.json"

_FOLDERS = ["wp-content", "uploads", "themes", "plugins", "css", "js", "img", "images", "assets", "lib", "vendor", "src", "blog", "shop", "news"]
_FOLDERS += ["2019", "2020", "2021", "2022", "01", "04", "07", "11", "会社案内", "お知らせ"]
_KINDS = (  # how many in a hundred, stem, ending, does it compress
    (26, "page", ".php", True),
    (14, "module", ".js", True),
    (9, "style", ".css", True),
    (9, "index", ".html", True),
    (6, "lang", ".po", True),
    (16, "IMG", ".jpg", False),
    (14, "icon", ".png", False),
    (3, "font", ".woff2", False),
    (3, "お品書き", ".pdf", False),
)


@dataclass(frozen=True)
class Shape:
    """What a tree is made of. Sizes are log-normal; `mean` in bytes."""

    files: int
    mean: int = 12_340
    sigma: float = 1.68
    seed: int = SEED


@dataclass(frozen=True)
class Corpus:
    """A tree on disk: `folders` below `path`, `size` in bytes."""

    path: Path
    files: int
    folders: int
    size: int

    def complaint(self, result: Path) -> str:
        """What is wrong with a tree that should hold as much; "" if nothing."""
        wanted, found = (self.files, self.size), count(result) if result.is_dir() else (0, 0)
        return "" if found == wanted else f"{found[0]:,} files with {found[1]:,} bytes arrived instead of {wanted[0]:,} with {wanted[1]:,}"


def tree(path: Path, shape: Shape) -> Corpus:
    """The tree of this shape at `path`; one that stands there already is taken as it is."""
    mark = path.with_name(path.name + _MARK)
    told = {"format": 1, **asdict(shape)}
    if mark.exists() and path.is_dir() and (kept := json.loads(mark.read_text()))["shape"] == told:
        return Corpus(path, kept["files"], kept["folders"], kept["size"])
    shutil.rmtree(path, ignore_errors=True)
    made = _grow(path, shape)
    mark.write_text(json.dumps({"shape": told, "files": made.files, "folders": made.folders, "size": made.size}))
    return made


def _grow(path: Path, shape: Shape) -> Corpus:
    chance = random.Random(shape.seed)
    path.mkdir(parents=True)
    folders = _folders(path, chance, max(1, round(shape.files / _FILES_A_FOLDER)))
    # Some folders hold hundreds of files, most a handful.
    weights = [chance.expovariate(1) ** 2 + 0.05 for _ in folders]
    text, noise = _text(chance, _LARGEST), chance.randbytes(_LARGEST)
    size = 0
    for number, folder in enumerate(chance.choices(folders, weights, k=shape.files)):
        _, stem, ending, plain = chance.choices(_KINDS, [kind[0] for kind in _KINDS])[0]
        length = min(_LARGEST, int(chance.lognormvariate(math.log(shape.mean) - shape.sigma**2 / 2, shape.sigma)))
        # Each begins with a line of its own: no two files are alike, so that nobody saves work on equal ones.
        head = f"{number:x} {chance.getrandbits(64):016x}\n".encode()
        offset = chance.randrange(_LARGEST - length + 1)
        data = (head + (text if plain else noise)[offset : offset + length])[:length]
        file = folder / f"{stem}-{number}{ending}"
        file.write_bytes(data)
        when = EPOCH + chance.randrange(_SPAN)
        os.utime(file, (when, when))
        size += length
    for folder in reversed(folders):  # the deepest first: making a folder touches the one above
        when = EPOCH + chance.randrange(_SPAN)
        os.utime(folder, (when, when))
    return Corpus(path, shape.files, len(folders) - 1, size)


def _folders(root: Path, chance: random.Random, count: int) -> list[Path]:
    """The root and `count` folders below it, at most eight deep."""
    made = [(root, 0)]
    taken = {root}
    while len(made) <= count:
        above, depth = chance.choice(made)
        folder = above / chance.choice(_FOLDERS)
        if folder in taken:
            folder = above / f"{folder.name}-{len(made)}"
        if depth < 8:
            folder.mkdir()
            taken.add(folder)
            made.append((folder, depth + 1))
    return [folder for folder, _ in made]


def _text(chance: random.Random, length: int) -> bytes:
    """Words, as compressible as the source of a web site."""
    words = ["".join(chance.choices("etaoinsrhldcumfpgwybvk_${}();=", k=chance.randint(2, 11))) for _ in range(3000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    some = " ".join(chance.choices(words, weights, k=200_000)).encode()
    return (some * (length // len(some) + 1))[:length]


def large(path: Path, size: int, seed: int = SEED) -> Corpus:
    """One file `random.bin` of `size` bytes that does not compress, in the folder `path`."""
    _noise(path / "random.bin", size, seed)
    return Corpus(path, 1, 0, size)


def several(path: Path, files: int, size: int, seed: int = SEED) -> Corpus:
    """So many files of `size` bytes each that do not compress and are not alike, in the folder `path`."""
    for number in range(files):
        _noise(path / f"random-{number}.bin", size, seed + number)
    return Corpus(path, files, 0, files * size)


def _noise(file: Path, size: int, seed: int) -> None:
    if not (file.exists() and file.stat().st_size == size):
        file.parent.mkdir(parents=True, exist_ok=True)
        chance = random.Random(seed)
        with file.open("wb") as out:
            for begin in range(0, size, 1 << 20):
                out.write(chance.randbytes(min(1 << 20, size - begin)))
        os.utime(file, (EPOCH, EPOCH))


def sparse(path: Path, size: int) -> Corpus:
    """One file `image.raw` of `size` bytes in the folder `path`: a few blocks of data, the rest a hole."""
    file = path / "image.raw"
    path.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        for place in range(8):
            out.seek(place * size // 8)
            out.write(random.Random(place).randbytes(min(4096, size // 8)))
        out.truncate(size)
    os.utime(file, (EPOCH, EPOCH))
    return Corpus(path, 1, 0, size)


def regular_files(path: Path) -> Iterator[os.DirEntry[str]]:
    folders = [str(path)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield entry


def count(path: Path) -> tuple[int, int]:
    """Regular files below a folder, and their bytes."""
    sizes = [entry.stat(follow_symlinks=False).st_size for entry in regular_files(path)]
    return len(sizes), sum(sizes)


def differences(tree: Path, result: Path) -> tuple[int, int]:
    """How many files of a tree are not at `result` byte for byte under their names, and how many are there that the tree does not have."""
    wanted, found = ({os.path.relpath(entry.path, root) for entry in regular_files(root)} if root.is_dir() else set() for root in (tree, result))
    wrong = [name for name in wanted & found if not filecmp.cmp(tree / name, result / name, shallow=False)]
    return len(wanted - found) + len(wrong), len(found - wanted)


def warm(path: Path) -> None:
    """Reads every file once, so that the old server has them all in memory, for everyone alike."""
    for entry in regular_files(path):
        with Path(entry.path).open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
