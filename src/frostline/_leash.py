"""A process that ends with the one that began it, however that one ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
from _thread import interrupt_main
from contextlib import suppress

LEASH = "FROSTLINE_ENDS_WITH_STDIN"
"""In the environment of a process whose standard input is held open by who began it."""


def heed_leash() -> None:
    """Once standard input ends, be interrupted as by Ctrl-C; nothing where no one asked for it.

    To be called by the main thread.
    """
    if os.environ.pop(LEASH, None):  # what it begins itself ends with it, not with its input
        # What a shell starts in the background is born deaf to it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=_wait, name="frostline-leash", daemon=True).start()


def _wait() -> None:
    with suppress(OSError):  # closed from the beginning
        while os.read(0, 1):  # not by sys.stdin, whose lock the main thread may want as it ends
            pass
    if sys.platform == "win32":
        interrupt_main()
    else:  # to the main thread itself: one that waits for a lock is woken by it
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
