"""A small Japanese office as sample data: its web site with the names and links of twenty years, and its mailboxes. The same every time."""

from __future__ import annotations

import base64
import datetime
import email.header
import email.policy
import email.utils
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

JST = datetime.timezone(datetime.timedelta(hours=9))
FIRST_DAY = datetime.datetime(2009, 4, 1, 9, 0, tzinfo=JST)
DAYS = 6000
_WORDS = (
    *("株式会社サンプル", "会社案内", "製品情報", "採用情報", "お問い合わせ", "営業時間", "平日", "午前", "東京都千代田区", "見積書", "請求書"),
    *("納品", "打ち合わせ", "来週", "資料", "確認", "よろしく", "お願い", "致します"),
)
_ODD_FILES = (
    "会社案内.html".encode(),
    "料金表（2019年）.html".encode("cp932"),  # written by a Windows FTP client
    "ﾊﾝｶｸｶﾅ ①.txt".encode("cp932"),
    "お知らせ.txt".encode("euc_jp"),
    "か\u3099ぞう.txt".encode(),  # decomposed, as macOS writes it
    b"price list (final) FINAL 2.txt",
    b" leading blank.txt",
    b"trailing dot.",
    b"-rf.txt",
    b'it\'s "quoted" $HOME `id`.txt',
    b"two\nlines.txt",
    b"back\\slash.txt",
    b"con.txt",
    b"10:30 meeting.txt",
    b"100%.txt",
    b"*.html",
    b"README",
    b"readme",
    b"long-" + b"x" * 240 + b".txt",
    b"empty.txt",
)
_LINKS = (
    (b"current", b"archive/2024"),
    (b"top.html", b"index.html"),
    (b"images/latest.png", b"../images/photo-003.png"),
    (b"dangling", b"no-such-file"),
    (b"loop", b"."),
    (b"absolute", b"/etc/hostname"),
    ("リンク".encode("cp932"), "会社案内.html".encode()),
)
_CONFIG = """<?php
// データベース
define('DB_NAME', 'example');
define('DB_USER', 'example');
define('DB_PASSWORD', 'not-a-real-one');
define('DB_HOST', 'mysql5.old-host.example');
define('ABSPATH', '/home/example/public_html/');
"""


def _text(rng: random.Random, words: int) -> str:
    return "".join(rng.choice(_WORDS) + ("。\n" if rng.random() < 0.2 else "、") for _ in range(words))


def _page(rng: random.Random, title: str, encoding: str) -> bytes:
    body = "\n".join(f"<p>{_text(rng, rng.randint(20, 200))}</p>" for _ in range(rng.randint(1, 6)))
    html = f'<!DOCTYPE html>\n<html lang="ja"><head><meta charset="{encoding}"><title>{title}</title></head>\n<body>\n{body}\n</body></html>\n'
    return html.encode(encoding)


def _picture(rng: random.Random) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randint(2_000, 40_000))


def make_site(folder: Path, files: int = 300) -> None:
    """Fills `folder`, which is made, with `files` regular files, some folders and symlinks. At least 60 files."""
    rng = random.Random(20261125)
    root = os.fsencode(folder)
    written: dict[bytes, bytes] = {name: b"" if name == b"empty.txt" else _text(rng, 50).encode("cp932") for name in _ODD_FILES}
    written[_ODD_FILES[0]] = _page(rng, "会社案内", "utf-8")
    written[_ODD_FILES[1]] = _page(rng, "料金表", "shift_jis")
    written[b"index.html"] = _page(rng, "株式会社サンプル", "utf-8")
    written[b".htaccess"] = b"AuthUserFile /home/example/.htpasswd\nRewriteEngine On\n"
    written[b"blog/wp-config.php"] = _CONFIG.encode()
    written[b"blog/wp-content/uploads/" + "社員旅行.mp4".encode()] = rng.randbytes(3_000_000)
    written["資料/見積書.xlsx".encode("cp932")] = rng.randbytes(20_000)
    for number in range(max(0, files - len(written))):
        year = 2009 + number % 16
        name, data = (
            (f"images/photo-{number:03}.png", _picture(rng)),
            (f"news/{year}/{number:03}.html", _page(rng, f"お知らせ {number}", "euc_jp" if year < 2014 else "utf-8")),
            (f"archive/{year}/カタログ{number}.pdf", b"%PDF-1.4\n" + rng.randbytes(rng.randint(500, 30_000))),
            (f"blog/wp-includes/js/part{number}.js", b"/* " + rng.randbytes(300).hex().encode() + b" */\n"),
        )[number % 4]
        written[name.encode()] = data
    for path, data in written.items():
        full = root + b"/" + path
        os.makedirs(os.path.dirname(full), exist_ok=True)  # noqa: PTH103, PTH120 (names as bytes)
        with open(full, "wb") as file:  # noqa: PTH123
            file.write(data)
        os.chmod(full, 0o600 if path.endswith(b"wp-config.php") else 0o444 if path.startswith(b"archive") else 0o644)  # noqa: PTH101
    os.makedirs(root + "/空のフォルダ".encode(), exist_ok=True)  # noqa: PTH103
    for path, target in _LINKS:
        os.symlink(target, root + b"/" + path)  # noqa: PTH211
    _date(root, rng)


def _date(root: bytes, rng: random.Random) -> None:
    """Gives everything a time of its own, whole seconds in the past; folders last, bottom up."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in (*sorted(names), b""):
            path = os.path.join(folder, name) if name else folder  # noqa: PTH118
            if not os.path.islink(path):  # noqa: PTH114
                when = int(FIRST_DAY.timestamp()) + rng.randrange(DAYS * 86_400)
                os.utime(path, (when, when))


@dataclass(frozen=True, slots=True)
class SampleMessage:
    """One message as it is delivered. `folder` is () for the INBOX, else the names from the top, as text."""

    folder: tuple[str, ...]
    data: bytes
    flags: tuple[str, ...]
    date: datetime.datetime


USERS = ("taro@example.jp", "hanako@example.jp", "info@example.jp")
FOLDERS: tuple[tuple[str, ...], ...] = (
    (),
    ("送信済みアイテム",),
    ("下書き",),
    ("取引先", "株式会社みどり"),
    ("取引先", "A&B 商会"),
    ("2025年度", "4月"),
    ("Trash",),
)
_FLAGS: tuple[tuple[str, ...], ...] = (
    (),
    ("\\Seen",),
    ("\\Answered", "\\Seen"),
    ("\\Flagged", "\\Seen"),
    ("$Forwarded", "\\Seen"),
    ("$label1",),
    ("\\Draft",),
)


def make_mailbox(user: str, messages: int = 60) -> Iterator[SampleMessage]:
    """Messages of `user`, folder by folder; every folder of FOLDERS has some if there are enough."""
    rng = random.Random(user)
    per_folder = -(-messages // len(FOLDERS))
    for number in range(messages):
        when = FIRST_DAY + datetime.timedelta(minutes=rng.randrange(DAYS * 1440))
        folder = FOLDERS[number // per_folder]
        flags = ("\\Draft",) if folder == ("下書き",) else _FLAGS[number % 6]
        yield SampleMessage(folder, _KINDS[number % len(_KINDS)](rng, user, number, when), flags, when)


def _head(rng: random.Random, user: str, number: int, when: datetime.datetime) -> EmailMessage:
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"] = email.utils.formataddr(("山田 太郎", "yamada@customer.example"))
    message["To"] = user
    message["Date"] = email.utils.format_datetime(when)
    message["Subject"] = f"{rng.choice(_WORDS)}の件 ({number})"
    message["Message-ID"] = f"<{number}.{rng.getrandbits(64):x}@customer.example>"
    return message


def _iso_2022_jp(rng: random.Random, user: str, number: int, when: datetime.datetime) -> bytes:
    """As Outlook Express wrote it: header words and body in ISO-2022-JP, seven bits."""
    subject = email.header.Header(f"{rng.choice(_WORDS)}について", "iso-2022-jp").encode()
    head = f"From: yamada@customer.example\r\nTo: {user}\r\nSubject: {subject}\r\nDate: {email.utils.format_datetime(when)}\r\n"
    head += f"Message-ID: <{number}.oe@customer.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=ISO-2022-JP\r\n"
    return head.encode("ascii") + b"\r\n" + _text(rng, 80).replace("\n", "\r\n").encode("iso-2022-jp", "replace")


def _utf8(rng: random.Random, user: str, number: int, when: datetime.datetime) -> bytes:
    message = _head(rng, user, number, when)
    message.set_content(_text(rng, 120) + "😀 髙﨑\n", cte="base64")
    return message.as_bytes()


def _attachment(rng: random.Random, user: str, number: int, when: datetime.datetime) -> bytes:
    message = _head(rng, user, number, when)
    message.set_content(_text(rng, 30))
    message.add_alternative(f"<p>{_text(rng, 30)}</p>", subtype="html")
    data = rng.randbytes(rng.randint(10_000, 200_000))
    message.add_attachment(data, maintype="application", subtype="pdf", filename=f"見積書 第{number}号.pdf")
    for depth, part in enumerate(part for part in message.walk() if part.is_multipart()):
        part.set_boundary(f"=_{number}_{depth}_of_{user.partition('@')[0]}")
    return message.as_bytes()


def _eight_bit_header(rng: random.Random, user: str, number: int, when: datetime.datetime) -> bytes:
    """Raw Shift_JIS in the header and no Message-ID: not allowed, and in every old mailbox."""
    head = f"From: shop@old.example\r\nTo: {user}\r\nSubject: ご注文 {number}\r\nDate: {email.utils.format_datetime(when)}\r\n\r\n"
    return head.encode("cp932") + _text(rng, 20).replace("\n", "\r\n").encode("cp932") + b".\r\n..\r\nFrom here on\r\n"


def _twin(rng: random.Random, user: str, number: int, when: datetime.datetime) -> bytes:
    """All have the same Message-ID, and different bodies."""
    data = base64.encodebytes(rng.randbytes(300)).replace(b"\n", b"\r\n")
    return f"From: list@list.example\r\nTo: {user}\r\nSubject: digest\r\nMessage-ID: <always-the-same@list.example>\r\n\r\n".encode() + data


def _no_body(rng: random.Random, user: str, number: int, when: datetime.datetime) -> bytes:
    return f"From: fax@office.example\r\nTo: {user}\r\nSubject: {number}\r\nDate: {email.utils.format_datetime(when)}\r\n\r\n".encode()


_KINDS = (_iso_2022_jp, _utf8, _attachment, _eight_bit_header, _twin, _no_body, _utf8)
