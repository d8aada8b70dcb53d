"""The work at buckets that is compared, what it is done on, and the figures to reach."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

from scripts.benchmarks import copy_contenders as by
from scripts.benchmarks import corpus
from scripts.benchmarks.cases import told
from scripts.benchmarks.copy_world import CopyWorld
from scripts.benchmarks.corpus import Corpus, Shape
from scripts.benchmarks.results import Target
from scripts.benchmarks.trial import FULL, Amounts, Plan

BULKY = 8  # files of the large kind
MEMORY = 300  # MiB that hostbackup has to stay under
TIMES_THE_BULK = 5  # what stands at the same time: the files, a vault, a bucket, what was fetched back, and room to spare

Maker = Callable[[CopyWorld, Amounts], Plan]
ALL: Sequence[type[by.Program]] = (by.Hostbackup, by.Encrypted, by.Restic, by.Rclone, by.Aws)


def _site(world: CopyWorld, amounts: Amounts) -> Corpus:
    return corpus.tree(world.folder / "copy-site", Shape(amounts.copied, mean=8_000, sigma=1.5))


def _small(
    server: str, title: str, work: Callable[[by.Program, str], by.Contender], programs: Sequence[type[by.Program]], targets: Sequence[Target]
) -> Maker:
    """A case on many small files at one of the servers."""

    def plan(world: CopyWorld, amounts: Amounts) -> Plan:
        site = _site(world, amounts)
        contenders = [work(made(world, site), server) for made in programs]
        return Plan(f"{title} ({server})", told(site), contenders, targets, [site.path], amounts.copied >= FULL.copied)

    return plan


def first(server: str) -> Maker:
    programs = (by.Hostbackup, by.Encrypted, by.BackupAndCopy, by.Restic, by.Rclone, by.Aws)
    targets = [Target("faster", "hostbackup", "restic", 1), Target("memory", "hostbackup", "", MEMORY)]
    return _small(server, "Bucket: first copy", by.first, programs, targets)


def again(server: str) -> Maker:
    targets = [Target("requests", "hostbackup", "", 10), Target("time", "hostbackup", "", 1)]
    return _small(server, "Bucket: second copy, nothing changed", by.again, ALL, targets)


def restore(server: str) -> Maker:
    targets = [Target("faster", "hostbackup", "restic", 1), Target("memory", "hostbackup", "", MEMORY)]
    return _small(server, "Bucket: restore from the copy alone", by.restore, ALL, targets)


def large(world: CopyWorld, amounts: Amounts) -> Plan:
    free = shutil.disk_usage(world.folder).free
    if free < TIMES_THE_BULK * amounts.bulk:
        raise OSError(
            f"copies-large needs {TIMES_THE_BULK * amounts.bulk / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free: --copy-large takes less"
        )
    bulk = corpus.several(world.folder / "copy-large", BULKY, amounts.bulk // BULKY)
    return Plan(
        "Bucket: first copy, large files (rclone)",
        told(bulk),
        [by.first(made(world, bulk), "rclone") for made in ALL],
        [Target("within", "hostbackup", "rclone", 1.3), Target("memory", "hostbackup", "", MEMORY)],
        [bulk.path],
        amounts.bulk >= FULL.bulk,
    )


COPY_CASES: dict[str, Maker] = {
    "copies-first": first("rclone"),
    "copies-again": again("rclone"),
    "copies-restore": restore("rclone"),
    "copies-large": large,
    "copies-first-moto": first("moto"),
    "copies-again-moto": again("moto"),
    "copies-restore-moto": restore("moto"),
}
