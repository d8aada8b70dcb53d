"""The contents of an object, all of them or an error."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from hostbackup.errors import HostbackupError, LineCut

_RESUMES = 4  # times one download is taken up again after a cut


class Download(io.RawIOBase):
    """The bytes of one object, all of them or an error."""

    def __init__(self, body: Any, size: int, again: Callable[[int], Any], explain: Callable[[Exception], HostbackupError]) -> None:
        self._body = body
        self._size = size
        self._at = 0
        self._again = again
        self._explain = explain
        self._left = _RESUMES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._at >= self._size:
            return 0
        data = self._some(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _some(self, wanted: int) -> bytes:
        from botocore.exceptions import BotoCoreError

        while True:
            problem: HostbackupError
            try:
                data: bytes = self._body.read(min(wanted, self._size - self._at))
                if data:
                    return data
                problem = LineCut(f"the download ended after {self._at} of {self._size} bytes")
            except (BotoCoreError, OSError) as error:
                problem = self._explain(error)
            if not self._left:
                raise problem
            self._left -= 1
            self._body.close()
            self._body = self._again(self._at)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()
