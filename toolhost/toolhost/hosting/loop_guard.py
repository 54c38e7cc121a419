"""Notices code that blocks a tool host's event loop, and names it while it does.

Blocking calls belong in synchronous functions, which get threads of their own. One in async code would make every
server of the host wait; nothing can undo that, so it is said loudly.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback

logger = logging.getLogger(__name__)
BLOCKED = "the event loop is blocked"


class LoopGuard:
    """A thread that looks whether *loop* still turns.

    Args:
        after: seconds without a turn that count as blocked.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, after: float = 0.5) -> None:
        self._loop = loop
        self._after = after
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-guard", daemon=True)

    def start(self) -> None:
        """Call it from the loop's own thread."""
        self._watched = threading.get_ident()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        turned = threading.Event()
        while not self._stop.wait(self._after / 2):
            turned.clear()
            try:
                self._loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # the loop is closed
                return
            asked = time.monotonic()
            if turned.wait(self._after):
                continue
            frame = sys._current_frames().get(self._watched)
            where = "".join(traceback.format_stack(frame, limit=6)) if frame else "unknown\n"
            turned.wait()
            logger.error("%s: for %.1f s, at\n%s", BLOCKED, time.monotonic() - asked, where)
