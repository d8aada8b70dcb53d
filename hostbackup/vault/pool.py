"""Many items through one function at a time, in threads, without running ahead of whoever takes the results."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")


def each(
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    ahead: int | None = None,
    leave: Callable[[BaseException], object] = lambda _: None,
) -> Iterator[R]:
    """`work(item)` of every item, as they get done. At most `ahead` items (`2 * workers` by default) are taken before their results are.

    What `work` or `items` raises is raised here; items not begun are then dropped, begun ones are waited for. So it is when the generator is closed.
    `leave` is called before that, with what ends it: it can have the begun ones make haste.
    """
    from concurrent.futures import ThreadPoolExecutor
    from queue import SimpleQueue

    done: SimpleQueue[Future[R]] = SimpleQueue()
    source = iter(items)
    waiting = 0
    with ThreadPoolExecutor(workers, thread_name_prefix="store") as pool:
        try:
            while True:
                while waiting < (ahead or 2 * workers):
                    try:
                        item = next(source)
                    except StopIteration:
                        break
                    pool.submit(work, item).add_done_callback(done.put)
                    waiting += 1
                if not waiting:
                    return
                finished = done.get()
                waiting -= 1
                yield finished.result()
        except BaseException as error:
            leave(error)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def in_order(work: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int | None = None) -> Iterator[R]:
    """Like `each`, but the results come in the order of the items."""
    from concurrent.futures import ThreadPoolExecutor

    source = iter(items)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="store") as pool:
        try:
            while True:
                while len(waiting) < (ahead or 2 * workers):
                    try:
                        item = next(source)
                    except StopIteration:
                        break
                    waiting.append(pool.submit(work, item))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Budget:
    """So many bytes may be held in memory at once, by all threads together."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._changed = threading.Condition()

    def hold(self, size: int) -> _Hold:
        """A context in which `size` bytes are held; waits until there is room. More than the whole budget gets it alone."""
        return _Hold(self, min(size, self._size))

    def take(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held + size <= self._size)
            self._held += size

    def give(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()


class _Hold:
    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self._size = size

    def __enter__(self) -> None:
        self._budget.take(self._size)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._budget.give(self._size)
