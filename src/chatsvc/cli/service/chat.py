"""``chatsvc chat``: a terminal client of any chatsvc over HTTP, by default of the running service of CHATSVC_HOME.

The server keeps the conversation; the client continues it by its id.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import ssl
import sys
import time
import unicodedata
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx

from chatsvc.cli.accounts.user import first_line
from chatsvc.errors import OperatorError
from chatsvc.supervisor.address import running_address
from chatsvc.supervisor.probe import connect

_SETTLE_PAUSES_S = (0.0, 0.2, 0.4, 0.8, 1.6)
_TIMEOUT = httpx.Timeout(10.0, read=90.0)  # a stream has comments in between


@click.command("chat")
@click.option("--url", help="The service's URL; by default the running service of CHATSVC_HOME.")
@click.option("--user", "name", default="admin", show_default=True, help="The account's name.")
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file whose first line is the password; by default the password is asked for.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="The longest answer in tokens; by default the service decides."
)
@click.option("--once", metavar="TEXT", help="Ask this one question, print the answer and end.")
@click.option("--cacert", type=click.Path(exists=True, dir_okay=False), help="The CA of the server's certificate.")
def command(
    url: str | None, name: str, password_file: Path | None, once: str | None, max_tokens: int | None, cacert: str | None
) -> None:
    """Chat in the terminal.

    Ctrl-C cancels the running answer, Ctrl-D ends. Lines can be edited, and the arrow keys recall earlier lines; they
    are kept in memory only.
    """
    url = url or running_address()[0]
    password = first_line(password_file.read_bytes()) if password_file else click.prompt("Password", hide_input=True)
    with _connection(url, cacert) as http:
        talk = Talk(http, max_tokens)
        talk.log_in(name, password)
        if once is not None:
            _show(talk.ask(once))
            return
        if sys.stdin.isatty():
            click.echo("Ctrl-C cancels an answer, Ctrl-D ends.", err=True)
        _edit_lines()
        while (text := _read_line()) is not None:
            if text.strip():
                _show_until_cancelled(talk.ask(text))


@contextlib.contextmanager
def _connection(url: str, cacert: str | None) -> Iterator[httpx.Client]:
    try:
        with connect(url, _TIMEOUT, _context(cacert)) as http:
            yield http
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise OperatorError(f"{url} does not answer ({error}): is the service running, and is --url right?") from None


def _context(cacert: str | None) -> ssl.SSLContext | bool:
    return ssl.create_default_context(cafile=cacert) if cacert else True


def _edit_lines() -> None:
    """Let input() edit lines and recall earlier ones. No history file is read or written."""
    with contextlib.suppress(ImportError):  # a Python without readline: only the terminal's own editing
        importlib.import_module("readline")


@dataclass
class Talk:
    """A login and a conversation."""

    http: httpx.Client
    max_tokens: int | None = None
    _tokens: dict[str, str] = field(default_factory=dict, repr=False)
    _conversation_id: str | None = None
    _unsettled_id: str | None = None  # of a cut answer: the service may have kept its beginning

    def log_in(self, name: str, password: str) -> None:
        """Get tokens.

        Raises:
            OperatorError: the service refused.
        """
        self._tokens = self._post("/login", {"username": name, "password": password})

    def ask(self, text: str) -> Generator[str, None, None]:
        """The pieces of the answer as they arrive. An expired access token is refreshed once.

        Raises:
            OperatorError: the service refused, or the answer ended with an error.
        """
        self._settle()
        optional = {"conversation_id": self._conversation_id, "max_tokens": self.max_tokens}
        body = {"query": text, **{name: value for name, value in optional.items() if value is not None}}
        for attempt in (1, 2):
            with self.http.stream("POST", "/chat/stream", json=body, headers=self._bearer("access_token")) as answer:
                if answer.status_code == httpx.codes.UNAUTHORIZED and attempt == 1:
                    answer.read()
                    self._tokens = self._post("/refresh", None, self._bearer("refresh_token"))
                    continue
                _check(answer)
                yield from self._pieces(answer)
                return

    def _pieces(self, answer: httpx.Response) -> Generator[str, None, None]:
        started_id = None
        for name, data in read_events(answer.iter_lines()):
            if name == "error":
                raise OperatorError(data["error"]["message"])
            if name == "start":
                started_id = data["conversation_id"]
            elif name == "done":
                self._conversation_id, self._unsettled_id = started_id, None
                return
            else:
                self._unsettled_id = started_id
                yield data["token"]
        raise OperatorError("The answer broke off; ask again.")

    def _settle(self) -> None:
        """After a cut answer, continue its conversation if the service kept it; it does so within a second."""
        unsettled_id, self._unsettled_id = self._unsettled_id, None
        if unsettled_id is None or unsettled_id == self._conversation_id:
            return
        for pause_s in _SETTLE_PAUSES_S:
            time.sleep(pause_s)
            answer = self.http.get(f"/conversations/{unsettled_id}", headers=self._bearer("access_token"))
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                self._tokens = self._post("/refresh", None, self._bearer("refresh_token"))
            elif answer.is_success:
                self._conversation_id = unsettled_id
                return

    def _post(self, path: str, body: dict[str, str] | None, headers: dict[str, str] | None = None) -> dict[str, str]:
        answer = self.http.post(path, json=body, headers=headers)
        _check(answer)
        tokens: dict[str, str] = answer.json()
        return tokens

    def _bearer(self, which: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._tokens[which]}"}


def read_events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events of a stream as (name, data); comments are skipped."""
    name = "message"
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            yield name, json.loads(line[5:])
        elif not line:
            name = "message"


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.reason_phrase
    raise OperatorError(f"{message} (status {answer.status_code})")


def _read_line() -> str | None:
    """A line of input; None at its end. Ctrl-C while typing starts a new line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            click.echo()


def _show_until_cancelled(pieces: Generator[str, None, None]) -> None:
    """Print one answer; an error in it does not end the conversation."""
    try:
        _show(pieces)
    except KeyboardInterrupt:
        click.echo("\n(cancelled)")
    except (OperatorError, httpx.TransportError) as error:
        click.echo(f"\nchatsvc: {error}", err=True)


def _printable(text: str) -> str:
    """Without control characters: an escape sequence in an answer must not control the terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def _show(pieces: Generator[str, None, None]) -> None:
    # Closing the generator closes the connection, and with it the generation ends.
    with contextlib.closing(pieces) as open_pieces:
        for piece in open_pieces:
            click.echo(_printable(piece) if sys.stdout.isatty() else piece, nl=False)
    click.echo()
