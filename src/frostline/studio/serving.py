"""The studio over HTTP, for the browsers of the person who started it and for no one else.

It listens on this machine alone. Whoever asks must hold the token, which the address has that was
printed: the first visit puts it into a cookie. Pages of other sites in the same browser get
nowhere: the cookie goes along with no request of theirs, a name that resolves to this machine is
not answered to, and what changes anything must come from the studio's own pages.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final
from urllib.parse import parse_qsl, quote, urlsplit

from frostline.errors import ConfigError, FrostlineError, one_line
from frostline.studio.answering import Answer, Studio
from frostline.wording import on_the_command_line

_HOST = "127.0.0.1"
_NAMES = {"127.0.0.1", "localhost"}
_FORM_BYTES = 100_000
_PICTURE_BYTES = 500_000_000
_SECONDS = 60  # that a browser may take to send what it began


@final
class Server(ThreadingHTTPServer):
    """A studio that listens.

    Raises:
        ConfigError: the port is taken.
    """

    daemon_threads = True
    # A port that was just let go may be taken again, but never one that another listens on.
    allow_reuse_port = False

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.studio = Studio(folder)  # first: what cannot listen is closed, with its work
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((_HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} cannot be had: {getattr(error, 'strerror', None) or error}. Choose "
                "another --port, or 0 for any that is free."
            ) from error

    @property
    def address(self) -> str:
        """To be opened in a browser; holds the token."""
        return f"http://{_HOST}:{self.server_port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """Its name: studios on several ports of one machine share a browser's cookies."""
        return f"frostline-{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: what goes wrong here is a browser that went away."""

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
        path, query = self._asked()
        if "token" in query and self._is_token(query["token"]):
            cookie = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
            self._send(Answer(status=303, goto="/"), {"Set-Cookie": cookie})
        elif self._is_allowed():
            self._answer(lambda: self.server.studio.show(path, query))

    def do_POST(self) -> None:
        path, query = self._asked()
        if not self._is_allowed() or not self._is_own():
            return
        if path == "/predict":
            picture = self._body(_PICTURE_BYTES)
            if picture is not None:
                self._answer(lambda: self.server.studio.predict(query, picture), as_text=True)
            return
        body = self._body(_FORM_BYTES)
        if body is not None:
            form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
            self._answer(lambda: self.server.studio.do(path, form))

    def _asked(self) -> tuple[str, Mapping[str, str]]:
        parts = urlsplit(self.path)
        return parts.path, dict(parse_qsl(parts.query, keep_blank_values=True))

    def _is_allowed(self) -> bool:
        """Whether who asks holds the token; says so if not."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if host not in _NAMES:
            self._refuse("This is asked for by a name that is not this computer's.")
            return False
        cookies = (
            part.strip().partition("=") for part in self.headers.get("Cookie", "").split(";")
        )
        given = next((value for name, _, value in cookies if name == self.server.cookie), "")
        if not self._is_token(given):
            self._refuse("Open the address that `frostline studio` printed; it holds a token.")
            return False
        return True

    def _is_own(self) -> bool:
        """Whether a form was sent from a page of the studio's; says so if not."""
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.headers.get("Host"):
            self._refuse("This was asked for by a page of another site.")
            return False
        return True

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.server.token.encode())

    def _body(self, most: int) -> bytes | None:
        """What was sent; None where it is too much, which is said."""
        text = self.headers.get("Content-Length", "")
        length = int(text) if text.isascii() and text.isdecimal() else -1
        if not 0 <= length <= most:
            self._refuse(f"More was sent than {most:,} bytes, or not how much.", status=413)
            return None
        return self.rfile.read(length)

    def _answer(self, make: Any, *, as_text: bool = False) -> None:
        with on_the_command_line():
            try:
                self._send(make())
            except FrostlineError as error:
                found = str(error)
            except ConnectionError:
                return
            except Exception as error:
                found = f"unexpected {one_line(error)}. Please report it."
            else:
                return
            if as_text:
                self._refuse(found, status=400)
            else:
                self._send(self.server.studio.problem(found))

    def _refuse(self, message: str, *, status: int = 403) -> None:
        self.close_connection = True  # what else was sent with it is not read
        self._send(Answer(message, status), {"Content-Type": "text/plain; charset=utf-8"})

    def _send(self, answer: Answer, more: Mapping[str, str] | None = None) -> None:
        body = answer.body.encode("utf-8", "backslashreplace")
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            **(more or {}),
        }
        if answer.goto:
            headers["Location"] = quote(answer.goto, safe="/?=&%+-_.~")
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Nothing: the terminal is the person's."""
