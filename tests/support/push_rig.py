"""A push of one mailbox between a vault and a scripted server, which can be ended at any step of its journal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hostbackup.errors import ConnectionFailed
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.push_mail import MailPush
from hostbackup.jobs.result import Result
from hostbackup.jobs.scratch import MailScratch
from hostbackup.jobs.verify_mail import NewMail
from hostbackup.model import Folder, Observer
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_folders import FolderMap
from hostbackup.protocols.imap.session import ImapSession
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.vault import Vault
from tests.support.imap_script import FakeImap
from tests.support.sample_vault import MAIL, Mail, write_mail

BODIES = [b"Subject: message %d\r\nDate: Wed, 1 Jul 2026 02:44:25 +0900\r\n\r\n" % number + b"x" * number for number in range(9)]
INBOX = [Mail(uid, data) for uid, data in enumerate([*BODIES[:5], BODIES[2], BODIES[2]], 1)]  # one of them three times
SENT = [Mail(uid, data) for uid, data in enumerate([*BODIES[5:], BODIES[0]], 1)]
WHOLE = {b"INBOX": Counter(mail.data for mail in INBOX), b"Sent": Counter(mail.data for mail in SENT)}


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Steps:
    """Counts what could be the last thing that is done, and ends it all at the one that is asked for."""

    last: int = -1
    count: int = 0
    dead: bool = False

    def step(self) -> None:
        if self.dead or self.count == self.last:
            self.dead = True
            raise Killed
        self.count += 1


class Killing(Ledger):
    """A journal that a kill can come before each use of, and after each sync. `synced` bytes are what a power cut leaves."""

    def __init__(self, vault: Vault, steps: Steps) -> None:
        self.steps = steps
        self.path = vault.state.folder / "push-test.jsonl"
        self.synced = self.path.stat().st_size if self.path.exists() else 0
        super().__init__(vault.state.journal("push-test"), vault.incoming)

    def append(self, records: Iterable[Record]) -> None:
        self.steps.step()
        super().append(records)

    def sync(self) -> None:
        self.steps.step()
        super().sync()
        self.synced = self.path.stat().st_size if self.path.exists() else 0
        self.steps.step()


@dataclass
class Rig:
    """A vault with a mailbox, and a server that it goes to."""

    vault: Vault
    root: str
    fake: FakeImap
    spare: bool = True
    pauses: list[float] = field(default_factory=list)  # before another connection
    naps: list[float] = field(default_factory=list)  # to see whether more arrives
    patience: float = 14.0
    observer: Observer = field(default_factory=Observer)

    def push(self, steps: Steps | None = None, *, power_cut: bool = False) -> Result | None:
        """None where it was killed."""
        result, made = Result(self.observer), list[ImapSession]()
        journal = Killing(self.vault, steps or Steps())

        def connect() -> ImapSession:
            made.append(self.fake.factory())
            return made[-1]

        spare: Callable[[], ImapSession | None] = connect if self.spare else lambda: None
        place = MailAccount(connect, side="new", part=MAIL, pause=self.pauses.append, reader=self.vault.objects.read, spare=spare)
        source = MailRoot.open(self.vault.manifests, self.root)
        try:
            with MailScratch(self.vault.incoming) as todo:
                mapping = FolderMap.between(source.folders(), place.folders(), old_prefix=b"", new_prefix=b"", new_separator=b"/")
                place.prepare(mapping.folders(), mapping)
                work = MailPush(MAIL, place, source, self.vault, journal, mapping, result, todo, pause=self.naps.append, patience=self.patience)
                work.plan()
                work.apply()
                work.prove()
        except Killed:
            for session in made:
                session.drop()
            if power_cut:
                with journal.path.open("ab") as file:
                    file.truncate(journal.synced)
            return None
        except ConnectionFailed as error:
            result.fail_part(error, side="new", part=MAIL.id)
            return result
        finally:
            if not journal.steps.dead:
                place.close()
            journal.close()
        return result

    def journal(self) -> dict[str, str]:
        """The state of every message that the journal knows."""
        lines = (self.vault.state.folder / "push-test.jsonl").read_bytes().splitlines()
        return {json.dumps(row["key"]): row["state"] for row in map(json.loads, lines)}

    def standing(self) -> dict[bytes, Counter[bytes]]:
        return {name: Counter(box.messages.values()) for name, box in self.fake.boxes.items()}

    def verify(self) -> tuple[Result, dict[str, int]]:
        """`verify --against new` of what was pushed: the result, and the counts."""
        result, root = Result(), MailRoot.open(self.vault.manifests, self.root)
        place = MailAccount(self.fake.factory, side="new", part=MAIL, pause=self.pauses.append, reader=self.vault.objects.read)
        with Ledger(self.vault.state.journal("push-test"), self.vault.incoming) as ledger:
            state = PartState(MAIL, self.root, 0, 0)
            tally = NewMail(state, root, self.vault, result, ledger, {b"INBOX": b"INBOX", b"Sent": b"Sent"}).run(place)
        return result, dict(tally.counts)


def write_mailbox(vault: Vault, *folders: tuple[bytes, list[Mail]]) -> str:
    """The root of a mailbox of the vault."""
    totals = write_mail(vault, MAIL, [(Folder(name, b"/"), mails) for name, mails in folders])
    vault.objects.flush()
    vault.manifests.flush()
    return totals.root
