"""The work over IMAP that is compared, what it is done on, and the figures to reach."""

from __future__ import annotations

from collections.abc import Callable

from scripts.benchmarks import mail_contenders as by
from scripts.benchmarks.mail_corpus import Mailbox, Shape, mailbox, single
from scripts.benchmarks.mail_world import MailWorld
from scripts.benchmarks.results import Target
from scripts.benchmarks.trial import FULL, Amounts, Plan

SMALL = 600  # mean size in bytes of the messages of a crowded folder

Maker = Callable[[MailWorld, Amounts], Plan]


def _office(world: MailWorld, amounts: Amounts) -> Mailbox:
    return mailbox(world.folder / "office-mail", Shape(amounts.messages))


def _told(box: Mailbox) -> str:
    if box.messages == 1:
        return f"one message of {box.size / 1e6:,.0f} MB"
    folders = "one folder" if box.folders == 1 else f"{box.folders} folders"
    return f"{box.messages:,} messages in {folders}, {box.size / 1e6:,.0f} MB"


def first_pull(world: MailWorld, amounts: Amounts) -> Plan:
    office = _office(world, amounts)
    user = world.delivered(office)
    return Plan(
        "Mail: first pull",
        _told(office),
        [
            by.hostbackup_pull(world, user, office),
            by.mbsync_pull(world, user, office),
            by.mbsync_pull(world, user, office, name="mbsync (FSync no)", sync=False),
            by.offlineimap_pull(world, user, office),
            by.imapclient_pull(world, user, office),
        ],
        [
            Target("faster", "hostbackup", "mbsync", 2),
            Target("faster", "hostbackup", "offlineimap3", 25),
        ],
        [world.maildir(user)],
        amounts.messages >= FULL.messages,
    )


def second_run(world: MailWorld, amounts: Amounts) -> Plan:
    office = _office(world, amounts)
    user = world.delivered(office)
    return Plan(
        "Mail: second run, nothing changed",
        _told(office),
        [made(world, user, office) for made in (by.hostbackup_again, by.mbsync_again, by.offlineimap_again, by.imapclient_again)],
        [Target("turns", "hostbackup", "", 15), Target("faster", "hostbackup", "mbsync", 1)],
        [world.maildir(user)],
        amounts.messages >= FULL.messages,
    )


def push(world: MailWorld, amounts: Amounts) -> Plan:
    office = _office(world, amounts)
    return Plan(
        "Mail: push",
        _told(office),
        [
            by.hostbackup_push(world, world.delivered(office), office),
            by.mbsync_push(world, office),
            by.imapclient_push(world, office, amounts.some),
            by.multiappend_push(world, office),
        ],
        [Target("rate", "hostbackup", "", 1000)],
        [office.path],
        amounts.messages >= FULL.messages,
    )


def memory(world: MailWorld, amounts: Amounts) -> Plan:
    crowd = mailbox(world.folder / "crowd-mail", Shape(amounts.many, mean=SMALL, sigma=0.3, folders=1))
    one = single(world.folder / "single-mail", amounts.message)
    names = [f"{crowd.messages:,} messages", f"{one.size / 1e6:,.0f} MB in one"]
    return Plan(
        "Mail: memory",
        "; ".join(_told(box) for box in (crowd, one)),
        [by.hostbackup_pull(world, world.delivered(box), box, name=name, counted=False) for box, name in zip((crowd, one), names, strict=True)],
        [Target("memory", name, "", 200) for name in names],
        [],
        amounts.many >= FULL.many and amounts.message >= FULL.message,
    )


MAIL_CASES: dict[str, Maker] = {
    "mail-first-pull": first_pull,
    "mail-second-run": second_run,
    "mail-push": push,
    "mail-memory": memory,
}
