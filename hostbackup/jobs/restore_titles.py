"""Names of exported mail for people: folders as a mail program shows them, messages by date and subject. Harmless on Linux, Windows and macOS alike.

A folder's name is mapped so that the mapping can be undone. A message's is only made to be read: its UID in it says which one it is, and
`flags.jsonl` the rest.
"""

from __future__ import annotations

import email.errors
import email.header
import re
import unicodedata

from hostbackup.jobs.restore_names import Names
from hostbackup.model import Message
from hostbackup.protocols.imap.dates import instant
from hostbackup.protocols.imap.names import display

HEADER = 64 * 1024  # bytes of a message in which its subject is looked for
_TITLE_CHARACTERS = 60  # so that paths stay below the 260 UTF-16 units that many Windows programs bear
_TITLE_BYTES = 150
_SUBJECT = re.compile(rb"^subject[ \t]*:((?:[^\n]*\n[ \t])*[^\n]*)", re.IGNORECASE | re.MULTILINE)
_DATE = re.compile(r" ?(\d+)-([A-Za-z]+)-(\d+) (\d+):(\d+)")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_END = re.compile(rb"\r?\n\r?\n")
_WINDOWS = re.compile(r'[<>:"/\\|?*]')
_SHOWN = ("L", "M", "N", "P", "S", "Zs")  # Unicode categories: no controls, none that turn the direction of writing, nothing unassigned
_CHARSETS = ("iso-2022-jp", "utf-8", "cp932")  # of subjects that are not encoded as they should be; only the first of them is plain ASCII

# Files that Thunderbird takes for something else than a mail folder (its nsShouldIgnoreFile).
_OWN_FILES = re.compile(
    rb"(?:\.(?:msf|sbd|mozmsgs|snm|toc|wdseml)|~)$|^(?:msgfilterrules|rulesbackup|rules|popstate)\.dat$|^(?:filterlog|junklog)\.html$"
    rb"|^(?:feeds|feeditems)\.json$",
    re.IGNORECASE,
)


class FolderNames(Names):
    """Names of exported folders: those of the file system at hand, Windows and Thunderbird, as exports are carried about."""

    @classmethod
    def on(cls, names: Names) -> FolderNames:
        """`names`: what the file system at hand takes."""
        return cls(windows=True, utf8=True, ascii=names.ascii, case=False, longest=min(names.longest, 200))

    def fit(self, name: bytes) -> bytes:
        """As `Names.fit`; the same inverse."""
        fitting = super().fit(name).replace(b"/", b"%2F")
        if fitting.startswith((b".", b"#")):
            fitting = b"%%%02X" % fitting[0] + fitting[1:]
        if _OWN_FILES.search(fitting):
            fitting = fitting[:-1] + b"%%%02X" % fitting[-1]
        return fitting


def component(name: bytes) -> bytes:
    """One level of a mail folder's name in UTF-8, not mapped yet; `%` where it is empty."""
    return display(name).encode("utf-8", "backslashreplace") or b"%"


def message_file(item: Message, head: bytes, *, uidvalidity: int) -> bytes:
    """`2026-07-01 0244 Subject (UID).eml`: in the order of arrival, by the clock that the server gave the date in.

    `head`: the message's beginning. `uidvalidity`: the folder's own; a message of an earlier one has that before its UID.
    """
    told = _DATE.match(item.internaldate) if instant(item.internaldate) is not None else None
    date = f"{told[3]}-{_MONTHS.index(told[2].lower()) + 1:02}-{int(told[1]):02} {told[4]}{told[5]}" if told else "undated"
    number = f"{item.uid}" if item.uidvalidity == uidvalidity else f"{item.uidvalidity}-{item.uid}"
    words = [date, title(head), f"({number})"]
    return (" ".join(word for word in words if word) + ".eml").encode()


def title(head: bytes) -> str:
    """The subject of a message, decoded and fit for the name of a file; "" where it has none."""
    header = _END.split(head, maxsplit=1)[0]
    found = _SUBJECT.search(header)
    if found is None:
        return ""
    text = unicodedata.normalize("NFC", _decoded(re.sub(rb"\r?\n[ \t]", b" ", found[1]).strip()))
    text = "".join(character if unicodedata.category(character).startswith(_SHOWN) else " " for character in text)
    text = " ".join(_WINDOWS.sub("_", text).split())[:_TITLE_CHARACTERS]
    return text.encode()[:_TITLE_BYTES].decode("utf-8", "ignore").rstrip()


def _decoded(raw: bytes) -> str:
    """Encoded words (RFC 2047) decoded; bytes that should have been encoded in the first charset that they fit."""
    text = raw.decode("latin-1")
    if "=?" in text and raw.isascii():
        try:
            return str(email.header.make_header(email.header.decode_header(text)))
        except (LookupError, ValueError, email.errors.HeaderParseError):  # an unknown charset, broken base64
            return text
    for charset in _CHARSETS:
        try:
            return raw.decode(charset)
        except ValueError:
            continue
    return text
