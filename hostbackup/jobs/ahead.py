"""Modules that a run will need later are loaded while it waits for a server: loading takes as long as two or three round trips."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def loading(*modules: str) -> Iterator[None]:
    """Has them loaded by a thread of its own, which has ended when the context does.

    Nothing depends on it: whoever needs one imports it where it is used, and hears there what is wrong with it.
    """

    def load() -> None:
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)

    thread = threading.Thread(target=load, name="loading", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # this user may have no more threads
        yield
        return
    try:
        yield
    finally:
        thread.join()
