"""Servers that mistake links: what is made of their answers."""

from __future__ import annotations

import posixpath
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.protocols.sftp.client import Connection, Steps, ask
from hostbackup.protocols.sftp.packets import Attrs, Request, Status, Type, on_path
from hostbackup.protocols.sftp.pump import Pump, Work
from hostbackup.protocols.sftp.quirks import Look, as_written, leads_to, mistakes_links
from tests.support.sftp_server import Scripted, attrs, names, status

_parts = st.lists(st.sampled_from([b"a", b"bb", b"c c"]), max_size=4)


def test_proftpd_is_known_by_its_name() -> None:
    assert mistakes_links("SSH-2.0-mod_sftp/1.1.1")
    assert mistakes_links("SSH-2.0-mod_sftp")
    assert not mistakes_links("SSH-2.0-OpenSSH_9.2p1")


@given(_parts, st.integers(0, 4), _parts)
def test_a_relative_way_is_found_again_whatever_it_is(folder: list[bytes], up: int, down: list[bytes]) -> None:
    link = b"/" + b"/".join([*folder, b"link"])
    said = b"/".join([b".."] * min(up, len(folder)) + down) or b"."
    told = posixpath.normpath(posixpath.join(posixpath.dirname(link), said))
    assert as_written(link, told, len(said)) == (told if len(told) == len(said) else said), "the server is believed where it can be right"
    assert leads_to(link, told, said)


@pytest.mark.parametrize(
    ("told", "size", "said"),
    [
        (b"/srv/site/real", 4, b"real"),
        (b"/srv/site/real", 5, b"real/"),
        (b"/srv/site/real", 6, b"./real"),
        (b"/srv/site/real", 14, b"/srv/site/real"),
        (b"/srv/site/real", 77, b"/srv/site/real"),
        (b"/srv/site/real", None, b"/srv/site/real"),
        (b"/srv/site/real", 0, b"/srv/site/real"),
        (b"real", 77, b"real"),
        (b"/etc/passwd", 16, b"../../etc/passwd"),
        (b"/srv", 2, b".."),
        (b"/srv", 3, b"../"),
    ],
)
def test_what_no_relative_way_explains_stays_as_told(told: bytes, size: int | None, said: bytes) -> None:
    assert as_written(b"/srv/site/link", told, size) == said


def test_another_place_is_not_the_same_link() -> None:
    assert not leads_to(b"/srv/link", b"/srv/other", b"real")
    assert leads_to(b"/srv/link", b"real", b"real")


@pytest.mark.parametrize("link_first", [True, False])
def test_a_look_is_a_link_where_readlink_answers_whatever_lstat_says(link_first: bool) -> None:
    file, folder, own = Attrs(5, permissions=0o100644, mtime=1), Attrs(permissions=0o40755, mtime=2), Attrs(3, permissions=0o120777, mtime=3)
    gone, no_link = Status(2), Status(4)

    def seen(lstat: object, readlink: object) -> object:
        look = Look("owner", "mark")
        answers = [(readlink, Type.READLINK), (lstat, Type.LSTAT)]
        ended = [look.take(*answer) for answer in (answers if link_first else reversed(answers))]
        assert ended == [False, True]
        return look.value

    for lstat in (file, folder, gone):
        found = seen(lstat, ["a name"])
        assert isinstance(found, Attrs)
        assert found.permissions is not None
        assert stat.S_ISLNK(found.permissions)
        assert found.mtime is None, "the time is that of something else"
        assert seen(lstat, no_link) == lstat
    assert seen(own, ["a name"]) == own


def carry_out(connection: Connection, steps: Steps[list[object]]) -> list[object]:
    works = [Work(lambda _: steps)]
    (result,) = Pump[list[object]]([connection], timeout=5).run(lambda: works.pop() if works else None)
    return result


def test_lstat_on_such_a_connection_is_asked_twice_and_answered_once() -> None:
    def answer(kind: int, number: int, body: bytes) -> list[bytes]:
        (length,) = struct.unpack_from(">I", body)
        is_link = body[4 : 4 + length] == b"/link"
        if kind == Type.READLINK:
            return [names(number, (b"/target", struct.pack(">I", 0))) if is_link else status(number, 4)]
        return [attrs(number, 5)]

    asked: list[Request] = [on_path(Type.LSTAT, b"/link"), on_path(Type.LSTAT, b"/file"), on_path(Type.STAT, b"/link")]
    with Scripted(answer) as server:
        connection = server.connect()
        connection.mistakes_links = True
        link, file, followed = carry_out(connection, ask(*asked))
        assert connection.idle
        connection.close()
    assert isinstance(link, Attrs)
    assert stat.S_ISLNK(link.permissions or 0)
    assert file == followed
    assert sorted(kind for kind, _, _ in server.requests) == sorted([Type.LSTAT, Type.READLINK] * 2 + [Type.STAT])
