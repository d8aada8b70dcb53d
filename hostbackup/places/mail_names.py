"""Names of mail folders from one server to another: what they mean, and what they may be called where they cannot be called as they are.

Pure: names in, names out. A name is the bytes on the wire, in modified UTF-7 (RFC 3501 §5.1.3) where it is a sound one.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from enum import IntEnum

from hostbackup.protocols.imap import names

USES = ("\\Sent", "\\Drafts", "\\Junk", "\\Trash", "\\Archive")  # RFC 6154 §2, of those the ones that hold mail of their own
_NAMES = {
    "\\Sent": (
        *("sent", "sent items", "sent messages", "sent mail", "sent-mail"),
        *("送信済み", "送信済", "送信済みアイテム", "送信済みメール", "送信済みメッセージ", "送信済みトレイ"),
    ),
    "\\Drafts": ("drafts", "draft", "下書き", "下書きメール", "草稿"),
    "\\Trash": (
        *("trash", "deleted items", "deleted messages", "bin", "wastebasket"),
        *("ごみ箱", "ゴミ箱", "削除済み", "削除済みアイテム", "削除済みメール", "削除済みメッセージ"),
    ),
    "\\Junk": (
        *("junk", "junk e-mail", "junk email", "junk mail", "spam", "bulk mail"),
        *("迷惑メール", "迷惑メールフォルダ", "迷惑メールフォルダー", "スパム", "スパムメール"),
    ),
    "\\Archive": ("archive", "archives", "アーカイブ", "保管"),
}
_BY_NAME = {name: use for use, spellings in _NAMES.items() for name in spellings}
_WIDE = 0xFEE0  # from a printable ASCII character to the full-width one that reads alike
_PLAIN = " -_()"  # beside letters and digits, what every server takes
_PART = 100  # bytes on the wire, of one level: several of them fit into the 255 that file systems allow
_FLAT = 48


class Style(IntEnum):
    """How far a name is changed so that a server may take it; each is tried after the one before was refused."""

    AS_IT_IS = 0  # but for what cannot be in a name there at all
    CAREFUL = 1  # full-width characters for punctuation, no spaces at the ends, no long levels
    FLAT = 2  # one short level of letters and digits, made unlike others by a digest
    DIGEST = 3  # nothing but ASCII


def special_use_by_name(text: str) -> str:
    """The special use (RFC 6154) that a folder of this name has with common mail programs, "" where none."""
    return _BY_NAME.get(unicodedata.normalize("NFKC", text).casefold().strip(), "")


def alike(name: bytes, separator: bytes) -> str:
    """Equal for names that a server may take for one and the same: they differ in case, in how a letter is composed, or in spaces around a level."""
    levels = name.split(separator) if separator else [name]
    text = "\0".join(" ".join(names.display(level).split()) for level in levels)
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def same(name: bytes, separator: bytes) -> bytes:
    """Equal for names of one mailbox on every server: INBOX has no case (RFC 3501 §5.1), and servers hold that of what is below it too."""
    first = name.split(separator, 1)[0] if separator else name
    return b"INBOX" + name[len(first) :] if names.is_inbox(first) else name


def fitted(part: bytes, separator: bytes, style: Style = Style.AS_IT_IS) -> bytes:
    """One level of a name as another server can hold it: no separator inside, no control characters, sound modified UTF-7, never empty."""
    text = _text(part, separator)
    if style is not Style.AS_IT_IS:
        text = "".join(char if char.isalnum() or char in _PLAIN or char > "~" else _stand_in(char) for char in text)
        left, right = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
        text = _short("_" * left + text.strip() + "_" * right if text.strip() else "_" * len(text), part)
    return names.encode(text or "_")


def flat(parts: Sequence[bytes], style: Style, old: bytes) -> bytes:
    """All levels of a name in one, for servers that take neither the name nor its careful form."""
    if style is Style.DIGEST:
        return b"folder-" + _digest(old, 12).encode()
    text = "-".join("".join(char if char.isalnum() else "_" for char in _text(part, b"")) for part in parts)
    return names.encode(f"{_cut(text, _FLAT)}-{_digest(old)}")


def numbered(part: bytes, number: int) -> bytes:
    """The same level for the second, third… folder of that name."""
    return part if number == 1 else part + b" (%d)" % number


def _text(part: bytes, separator: bytes) -> str:
    try:
        text = names.decode(part)
    except ValueError:
        text = names.display(part)
    between = separator.decode("latin-1")
    text = "".join("_" if char < " " or char == "\x7f" else _stand_in(char) if char == between else char for char in text)
    return text.encode("utf-8", "replace").decode("utf-8")


def _stand_in(char: str) -> str:
    return chr(ord(char) + _WIDE) if "!" <= char <= "~" else "_"


def _short(text: str, part: bytes) -> str:
    """No longer than a level may be; what is cut off is told apart by a digest."""
    return text if len(names.encode(text)) <= _PART else f"{_cut(text, _PART - 9)}-{_digest(part)}"


def _cut(text: str, limit: int) -> str:
    while len(names.encode(text)) > limit:
        text = text[: -max(1, (len(names.encode(text)) - limit) // 4)]
    return text.rstrip()


def _digest(name: bytes, digits: int = 8) -> str:
    return hashlib.sha256(name).hexdigest()[:digits]
