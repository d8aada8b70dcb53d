"""Sizes and quotas of the new server by the real command line: told before anything is appended, and what fits goes there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dovecot import PLAIN_SLASH, Dovecot, dovecot
from tests.support.mail_move import Hands, Move, digest, letter

USER = "taro@example.test"
QUOTA = """
mail_plugins = quota
protocol imap {
  mail_plugins = quota imap_quota
}
plugin {
  quota = count:User quota
  quota_vsizes = yes
  quota_rule = *:storage=200K
}
"""


@pytest.fixture(scope="module")
def old() -> Iterator[Dovecot]:
    with dovecot(PLAIN_SLASH) as server:
        yield server


def test_a_quota_that_is_too_small_is_told_first_and_what_fits_is_pushed(old: Dovecot, tmp_path: Path) -> None:
    letters = [letter(number, 10_000) for number in range(40)]
    with dovecot(PLAIN_SLASH, extra=QUOTA) as new:
        it = Move(tmp_path, Hands(old, USER), Hands(new, USER), security="plain")
        it.write()
        it.old.deliver((), *letters)
        it.backup()
        planned = it.push("--dry-run", exit=3)
        [failure] = planned.json["failures"]
        assert (failure["code"], failure["part"]) == ("over-quota", f"mail/{USER}")
        assert "the mailbox has room for 204800 (quota 'User quota': 0 of 204800 used)" in failure["reason"]
        assert it.new.count() == 0
        ran = it.push(exit=3)
        there = it.new.count()
        assert 15 <= there < 21
        assert ran.json["counts"]["written"] == ran.json["counts"]["verified"] == there
        assert [row["resource"] for row in ran.json["room"]] == ["bytes"]
        assert Counter(row["code"] for row in ran.json["failures"]) == {"over-quota": 40 - there}
        assert ran.err.index("has room for 204800") < ran.err.index("Quota exceeded"), "before the server had to say so"
    with dovecot(PLAIN_SLASH) as roomy:
        Move(tmp_path, it.old, Hands(roomy, USER), security="plain").write()
        assert it.push().json["counts"]["written"] == 40
        assert Hands(roomy, USER).digests()[()] == Counter(map(digest, letters))
