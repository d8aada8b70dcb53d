"""The work over SFTP that is compared, what it is done on, and the figures to reach."""

from __future__ import annotations

from collections.abc import Callable

from scripts.benchmarks import contenders as by
from scripts.benchmarks import corpus
from scripts.benchmarks.corpus import Corpus, Shape
from scripts.benchmarks.results import Target
from scripts.benchmarks.trial import FULL, MIB, Amounts, Plan
from scripts.benchmarks.world import World

SMALL = 2_000  # mean size in bytes of the files that growth is measured with


Maker = Callable[[World, Amounts], Plan]


def _site(world: World, amounts: Amounts) -> Corpus:
    return corpus.tree(world.folder / "site", Shape(amounts.files))


def told(tree: Corpus) -> str:
    """What a tree is, in words."""
    if tree.files == 1:
        return f"one file of {tree.size / MIB:,.0f} MiB"
    if not tree.folders:
        return f"{tree.files:,} files of {tree.size / tree.files / MIB:,.0f} MiB each"
    return f"{tree.files:,} files in {tree.folders:,} folders, {tree.size / 1e6:,.0f} MB"


def first_pull_no_shell(world: World, amounts: Amounts) -> Plan:
    site = _site(world, amounts)
    return Plan(
        "First pull, SFTP only",
        told(site),
        [by.hostbackup_pull(world, world.closed, site), by.rclone_pull(world, site), by.tar_pull(world, site)],
        [Target("faster", "hostbackup", "rclone", 15), Target("within", "hostbackup", "tar over ssh", 2.5)],
        [site.path],
        amounts.files >= 20_000,
    )


def first_pull_shell(world: World, amounts: Amounts) -> Plan:
    site = _site(world, amounts)
    return Plan(
        "First pull, commands allowed",
        told(site),
        [by.hostbackup_pull(world, world.old, site), by.rsync_pull(world, site), by.tar_pull(world, site)],
        [Target("faster", "hostbackup", "rsync", 1), Target("within", "hostbackup", "tar over ssh", 1.5)],
        [site.path],
        amounts.files >= 20_000,
    )


def second_run(world: World, amounts: Amounts) -> Plan:
    site = _site(world, amounts)
    return Plan(
        "Second run, nothing changed, SFTP only",
        told(site),
        [by.hostbackup_again(world, world.closed, site), by.copied(world, site, "rclone"), by.copied(world, site, "rsync")],
        [Target("faster", "hostbackup", "rclone", 15), Target("within", "hostbackup", "rsync", 1.5)],
        [site.path],
        amounts.files >= 20_000,
    )


def push(world: World, amounts: Amounts) -> Plan:
    site = corpus.tree(world.folder / "push-site", Shape(amounts.push, mean=8_000, sigma=1.5))
    return Plan(
        "Push, SFTP only",
        told(site),
        [by.hostbackup_push(world, world.closed, site), by.rclone_push(world, site), by.lftp_push(world, site)],
        [Target("faster", "hostbackup", "rclone", 40), Target("faster", "hostbackup", "lftp", 10)],
        [site.path],
        amounts.push >= FULL.push,
    )


def big_file(world: World, amounts: Amounts) -> Plan:
    one = corpus.large(world.folder / "large", amounts.large)
    native = "hostbackup (openssh)"
    return Plan(
        "One large file, SFTP only",
        told(one),
        [
            by.hostbackup_pull(world, world.closed, one),
            by.hostbackup_pull(world, world.closed, one, name=native, client="openssh"),
            by.rclone_pull(world, one),
            by.scp_pull(world, one),
        ],
        [Target("within", "hostbackup", "rclone", 1), Target("within", native, "scp", 1.3)],
        [one.path],
        amounts.large >= FULL.large,
    )


def growth(world: World, amounts: Amounts) -> Plan:
    trees = [corpus.tree(world.folder / f"growth-{files}", Shape(files, mean=SMALL, sigma=1.2)) for files in (amounts.fewer, amounts.more)]
    image = corpus.sparse(world.folder / "sparse", amounts.sparse)
    names = [f"{amounts.fewer:,} files", f"{amounts.more:,} files", f"{amounts.sparse / MIB:,.0f} MiB, sparse"]
    times = amounts.more / amounts.fewer
    return Plan(
        "Growth, SFTP only",
        "; ".join(told(tree) for tree in (*trees, image)),
        [by.hostbackup_pull(world, world.closed, tree, name=name) for tree, name in zip((*trees, image), names, strict=True)],
        [Target("within", names[1], names[0], 1.1 * times), *(Target("memory", name, "", 250) for name in names)],
        [*(tree.path for tree in trees)],
        amounts.more >= FULL.more,
    )


CASES: dict[str, Maker] = {
    "first-pull-no-shell": first_pull_no_shell,
    "first-pull-shell": first_pull_shell,
    "second-run": second_run,
    "push": push,
    "big-file": big_file,
    "growth": growth,
}
