"""`frostline` and `python -m frostline`: the command line as a process of its own."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading

try:
    from frostline.cli import main
    from frostline.cli._dynamo import let_dynamo_wait
except KeyboardInterrupt:  # in the tenths of a second before anything could say so
    sys.exit("Error: interrupted.")

# Python looks for garbage each time 700 objects were made, and importing torch makes a million.
_OBJECTS = 50_000


def start() -> None:
    """Run the command line, and end the process."""
    gc.set_threshold(_OBJECTS, 20, 100)
    let_dynamo_wait()
    status = 0
    try:
        main()
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            raise
        status = int(leaving.code or 0)
    _leave(status)


def _leave(status: int) -> None:
    """End the process; all that was to be done at its end is done.

    Not by taking its million objects apart one by one, which takes as long as half of torch's
    import: the system takes the memory at once. Where something is still at work, as processes
    that train together, Python ends as ever.
    """
    distributed = sys.modules.get("torch.distributed")
    together = distributed is not None and distributed.is_initialized()
    threads = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if together or not all(thread.daemon for thread in threads):
        sys.exit(status)
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the reader of our output went away
        sys.exit(status)
    os._exit(status)


if __name__ == "__main__":
    start()
