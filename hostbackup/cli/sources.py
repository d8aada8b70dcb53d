"""Where a restore reads from: the profile's vault, one of its copies, or a copy that a URL or path names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hostbackup.cli.run import Session
from hostbackup.errors import UsageError
from hostbackup.jobs.connect import Connections
from hostbackup.jobs.copy_source import CopySource, Source, open_copy
from hostbackup.profile import Profile

if TYPE_CHECKING:
    from hostbackup.protocols.s3 import S3Target
    from hostbackup.vault.packs.seal import Identities


@contextmanager
def opened(
    session: Session, words: Sequence[str], source: str, endpoint: str | None, identity: Path | None = None
) -> Iterator[tuple[Source, Sequence[str]]]:
    """The source, and the words that are paths in it. Raises UsageError where it cannot be told what is meant."""
    if _is_place(source):
        words = words[1:] if words and words[0].endswith(".toml") else words
        with _closing(open_copy(source, _target(source, endpoint), _identities(session, identity))) as copy:
            yield copy, words
        return
    if not words:
        raise UsageError("a PROFILE is needed", hint="or name a copy: --from s3://bucket/prefix, or --from /path/of/the/copy")
    session.profile_name = words[0]
    profile = session.load()
    if source == "vault":
        with session.job("read") as job:
            yield job.vault, words[1:]
        return
    with _closing(_copy(session, profile, source, identity)) as copy:
        yield copy, words[1:]


def _is_place(source: str) -> bool:
    return "://" in source or (source not in ("vault", "copy") and ("/" in source or Path(source).is_dir()))


def _identities(session: Session, path: Path | None) -> Identities | None:
    if path is None:
        return None
    from hostbackup.vault.packs.seal import Identities

    return Identities(path, session.ask if session.can_ask else None)


def _copy(session: Session, profile: Profile, source: str, identity: Path | None) -> CopySource:
    copies = [copy for copy in profile.copies if source in ("copy", copy.name)]
    if not copies:
        known = ", ".join(copy.name for copy in profile.copies) or "none"
        raise UsageError(f"the profile has no copy {source!r}", hint=f"it has: {known}")
    found = next((copy for copy in copies if copy.mode != "mirror"), None)
    if found is None:
        reason = f"copy {copies[0].name} is a mirror: plain files, of which nothing can be restored but what they are"
        raise UsageError(reason, hint="take files out of it with any program, or name a copy of the vault")
    ask = session.ask if session.can_ask else None
    connections = Connections(profile, observer=session.observer, ask=ask, on_secret=session.secrets.append)
    return CopySource(connections.store(found), connections.identities(found, identity))


def _target(source: str, endpoint: str | None) -> S3Target | None:
    if endpoint is None:
        return None
    from hostbackup.protocols.s3 import S3Target

    return S3Target(bucket="", endpoint=endpoint)


@contextmanager
def _closing(copy: CopySource) -> Iterator[CopySource]:
    try:
        yield copy
    finally:
        copy.close()
