"""Streams packed by gzip on the way, where that was measured to pay."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator

from hostbackup.protocols.tar import TarBroken

_STRETCH = 3.0  # seconds measured before packing is judged
_STARVED = 0.3  # share of the time in which nothing came: then the line is what limits
_FAST = 12_500_000  # bytes a second (100 Mbit/s) from which a line is never called slow: then it is the server that others keep busy
_WORTH_TRYING, _WORTH_KEEPING = 1.3, 1.1
_SAMPLE, _BITE = 1 << 19, 1 << 15  # bytes tried on in all, and of one chunk


def unpacked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """What gzip packed (RFC 1952), in pieces of bounded size. Raises TarBroken."""
    inflate = zlib.decompressobj(31)
    try:
        for chunk in chunks:
            rest = chunk
            while rest and not inflate.eof:
                data = inflate.decompress(rest, 1 << 20)
                rest = inflate.unconsumed_tail
                if data:
                    yield data
    except zlib.error as error:
        raise TarBroken(f"what gzip packed is damaged: {error}") from error


class Packing:
    """Whether it pays to have the server pack a stream by gzip. Measured over stretches of some seconds, and taken back where it did not help."""

    def __init__(self) -> None:
        self.on = False
        self._given_up = False
        self._plain_rate = 0.0  # bytes a second before
        self._begin()

    def _begin(self) -> None:
        self._size = 0
        self._seconds = self._waited = 0.0
        self._sample = bytearray()

    def taste(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, of which a little is kept to try on."""
        for chunk in chunks:
            if len(self._sample) < _SAMPLE and not self._given_up:
                self._sample += chunk[:_BITE]
            yield chunk

    def measured(self, *, packed: bool, size: int, seconds: float, waited: float) -> str:
        """Takes note of one batch: its bytes unpacked, how long it took, and for how much of that nothing came. What was decided, for people."""
        if self._given_up or packed is not self.on:
            return ""
        self._size, self._seconds, self._waited = self._size + size, self._seconds + seconds, self._waited + waited
        if self._seconds < _STRETCH:
            return ""
        rate = self._size / self._seconds
        told = ""
        if self.on and rate < self._plain_rate * _WORTH_KEEPING:
            self.on, self._given_up = False, True
            told = "packing by gzip did not make the stream faster: left off"
        elif not self.on and rate < _FAST and self._waited > self._seconds * _STARVED and self._gain(rate) >= _WORTH_TRYING:
            self.on, self._plain_rate = True, rate
            told = f"the line is slow ({rate / 1e6:.1f} MB/s): the stream is packed by gzip"
        self._begin()
        return told

    def _gain(self, rate: float) -> float:
        """How many times faster it may get. The server, which has others to serve, is taken to pack half as fast as this machine."""
        if not self._sample:
            return 1.0
        began = time.perf_counter()
        small = len(zlib.compress(self._sample, 1))
        speed = len(self._sample) / max(time.perf_counter() - began, 1e-6)
        ours = self._size / max(self._seconds - self._waited, 1e-6)
        return min(rate * len(self._sample) / small, speed / 2, ours) / rate
