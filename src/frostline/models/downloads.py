"""Downloads that fail quickly, in one line, and leave nothing half-written."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from frostline.errors import FrostlineError, WeightsError, one_line
from frostline.wording import option

STALL_SECONDS = 10.0


@contextmanager
def downloading(what: str, *, cure: str = "") -> Iterator[None]:
    """Turn whatever goes wrong in the block into one WeightsError; keep standard output clean.

    A connection that stalls for `STALL_SECONDS` fails; a slow one may take as long as it needs.
    What libraries print about a download goes to standard error.

    Args:
        what: what is fetched and from where, as it stands in the message.
        cure: a sentence to put before the general advice.

    Raises:
        WeightsError: no network, an HTTP error, a wrong hash, a cache folder that cannot be
            written, a damaged copy in the cache.
    """
    # torch.hub opens its URL without a timeout (torch 2.15) and takes none; a firewall that drops
    # packets would hold us for minutes. The default for new sockets is the only way in.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except FrostlineError:
        raise
    # What a hub raises depends on which HTTP library its version uses, hence every Exception.
    except Exception as error:
        raise WeightsError(
            f"cannot get {what}: {one_line(error)}. {cure}{' ' if cure else ''}"
            f"Give weights you have with {option('weights', 'FILE')}, or use "
            f"{option('weights', 'none')} for a dry run."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
