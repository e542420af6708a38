"""The studio over HTTP, for the browsers of the person who started it and for no one else.

It listens on this machine alone, and each of its addresses begins with a token that only the
address that was printed tells: who does not know it gets nothing, be it another user of the
machine or a page of another site in the same browser. No cookie holds it, since a browser sends
those to whatever listens on another port of the machine. A name that resolves to this machine is
not answered to, and what changes anything must come from the studio's own pages.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final
from urllib.parse import parse_qsl

from frostline.errors import ConfigError, FrostlineError, one_line
from frostline.studio.answering import Answer, Studio
from frostline.wording import on_the_command_line

_ADDRESS = "127.0.0.1"
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
_FORM_BYTES = 100_000
_PICTURE_BYTES = 200_000_000
_SECONDS = 60  # that a browser may be silent within what it began to send


@final
class Server(ThreadingHTTPServer):
    """A studio that listens.

    Raises:
        ConfigError: the port cannot be had.
    """

    daemon_threads = True
    # A port that was just let go may be taken again, but never one that another listens on.
    allow_reuse_port = False

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.studio = Studio(folder)  # first: what cannot listen is closed, with its work
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} cannot be had: {getattr(error, 'strerror', None) or error}. Choose "
                "another --port, or 0 for any that is free."
            ) from error

    @property
    def address(self) -> str:
        """To be opened in a browser; holds the token."""
        return f"http://{_ADDRESS}:{self.server_port}/{self.token}/"

    def door(self) -> Path:
        """A page that leads to the address, and that no other user of the machine can read.

        A browser is started with it in place of the address: commands and their words can be seen
        by all.
        """
        page = Path(self.studio.work.scratch.name, "studio.html")
        page.write_text(f'<meta http-equiv="refresh" content="0; url={self.address}">')
        return page

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: it is a browser that went away."""

    def server_close(self) -> None:
        """Stop listening, and what is running."""
        super().server_close()
        self.studio.work.close()


@final
class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "Frostline", ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        if (asked := self._asked()) is not None:
            page, query = asked
            self._answer(lambda: self.server.studio.show(page, query))

    def do_POST(self) -> None:
        asked = self._asked()
        if asked is None or not self._is_own():
            return
        page, query = asked
        body = self._body(_PICTURE_BYTES if page == "predict" else _FORM_BYTES)
        if body is None:
            return
        if page == "predict":
            self._answer(lambda: self.server.studio.predict(query, body), as_text=True)
            return
        form = body.decode(errors="replace")
        self._answer(lambda: self.server.studio.do(page, _fields(form)))

    def _asked(self) -> tuple[str, Mapping[str, str]] | None:
        """Page and query of who knows the token; None of others, who are told so."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            self._refuse("This is asked for by a name that is not this computer's.")
            return None
        path, _, query = self.path.partition("?")
        token, slash, page = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse("Open the address that `frostline studio` printed; it holds a token.")
            return None
        if not slash:  # from where links would lead elsewhere
            self._send(Answer(goto=f"/{token}/"))
            return None
        try:
            return page, _fields(query)
        except ValueError:
            self._refuse("There are too many fields in this.", status=400)
            return None

    def _is_own(self) -> bool:
        """Whether a form was sent from a page of the studio's; says so if not."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        if origin in (None, f"http://{self.headers['Host']}") and site in (None, "same-origin"):
            return True
        self._refuse("This was asked for by a page of another site.")
        return False

    def _body(self, most: int) -> bytes | None:
        """What was sent; None where it is too much, or less than was said, which is told."""
        text = self.headers.get("Content-Length", "")
        length = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else most + 1
        if length > most:
            self._refuse(f"More was sent than {most:,} bytes, or not how much.", status=413)
            return None
        body = self.rfile.read(length)
        if len(body) < length:
            self._refuse("Less came than was to be sent.", status=400)
            return None
        return body

    def _answer(self, make: Callable[[], Answer], *, as_text: bool = False) -> None:
        with on_the_command_line():
            try:
                answer = make()
            except FrostlineError as error:
                found = str(error)
            except Exception as error:
                found = f"unexpected {one_line(error)}. Please report it."
            else:
                self._send(answer)
                return
            if as_text:
                self._refuse(found, status=400)
            else:
                self._send(self.server.studio.problem(found))

    def _refuse(self, message: str, *, status: int = 403) -> None:
        self.close_connection = True  # what else was sent with it is not read
        self._send(Answer(message, status), kind="plain")

    def _send(self, answer: Answer, *, kind: str = "html") -> None:
        body = answer.body.encode("utf-8", "backslashreplace")
        headers = {
            "Content-Type": f"text/{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": answer.policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if answer.goto:
            headers["Location"] = answer.goto
        self.send_response(303 if answer.goto else answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Nothing: the terminal is the person's."""


def _fields(text: str) -> dict[str, str]:
    """Of a query or a form, the last of each name."""
    return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=100))
