"""Runs chat templates in a child process with limits on CPU time and memory.

One child serves all requests, one at a time. It is started on first use, and again after it died. The kernel enforces
the limits: CPU time by a timer whose signal kills it, memory by RLIMIT_AS. A render costs one exchange over a socket
pair. Knows nothing about tokens.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from io import BufferedRWPair
from typing import Any, Literal

import jinja2
import msgspec

from chatsvc.errors import InvalidRequest, ModelRefused, Unavailable
from chatsvc.models.text.template import MarkerFinder, Overlong, Raised, constants, guarded_values, rendered

_log = logging.getLogger(__name__)

# A template that renders more than this from a bounded body is broken.
MAX_RENDERED_CHARS = 4_000_000
# A long conversation with a real template takes about 20 ms and 60 MB.
_CPU_S = 1.0
_MEMORY_BYTES = 256 << 20
# For a child that gets no CPU time at all (stopped, swapped out); a running one is killed by its timer.
_ANSWER_TIMEOUT_S = 60.0
_MAX_MESSAGE_CHARS = 300
_OUT_OF_MEMORY = 77  # an exit code that nothing else uses
_PR_SET_DUMPABLE = 4
_LENGTH = struct.Struct("<I")


class Render(msgspec.Struct, kw_only=True):
    """One rendering.

    Attributes:
        source: the template.
        messages: as transformers passes them, with placeholders for markers in their texts.
        mark: the random prefix of every placeholder; empty where there are none.
        markers: those that the template may search for in a message.
        bos_token, eos_token: their texts.
        opens_answer: end with the header of the assistant's turn.
    """

    source: str
    messages: list[dict[str, Any]]
    mark: str = ""
    markers: tuple[str, ...] = ()
    bos_token: str = ""
    eos_token: str = ""
    opens_answer: bool = True


class _Question(msgspec.Struct, kw_only=True):
    """Without ``render``: asks for the string constants of ``source``."""

    render: Render | None = None
    source: str = ""


class _Answer(msgspec.Struct, kw_only=True):
    """Texts, or a problem; ``detail`` is the text of ``raise_exception`` or an exception's name."""

    texts: list[str] = []
    problem: Literal["", "syntax", "raised", "overlong", "failed"] = ""
    detail: str = ""


class _ChildEnded(Exception):
    """The child died before it answered."""


class TemplateProcess:
    """Renders in a child process. Thread-safe; :meth:`close` ends the child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._closed = False

    def render(self, render: Render) -> str:
        """The text that the template writes.

        Raises:
            InvalidRequest: the template refuses these messages, fails on them, or exceeds its limits.
            ModelRefused: it is not valid Jinja.
            Unavailable: the child was killed from outside, twice.
        """
        return self._ask(_Question(render=render))[0]

    def constants(self, source: str) -> list[str]:
        """Every string constant of the template, whether it is written out or compared with.

        Raises:
            InvalidRequest, ModelRefused, Unavailable: as :meth:`render`.
        """
        return self._ask(_Question(source=source))

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._closed = True
            self._end()

    def _ask(self, question: _Question) -> list[str]:
        content = msgspec.json.encode(question)
        with self._lock:
            answer = self._answer(content)
        if answer.problem:
            raise _error_of(answer)
        return answer.texts

    def _answer(self, content: bytes) -> _Answer:
        for _ in range(2):
            if self._closed:
                break
            try:
                self._child = self._child or _Child()
                return msgspec.json.decode(self._child.ask(content), type=_Answer)
            except _ChildEnded:
                if self._end() in (_OUT_OF_MEMORY, -signal.SIGPROF, -signal.SIGSEGV):
                    return _Answer(problem="overlong")
            except OSError as error:
                _log.error("no process can be started for the chat template: %s", error)
        raise Unavailable

    def _end(self) -> int | None:
        child, self._child = self._child, None
        return None if child is None else child.end()


class _Child:
    """The process and our end of its socket pair."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            # Isolated mode, and an empty environment: ours may hold secrets.
            command = [sys.executable, "-I", "-m", "chatsvc.models.text.template_process"]
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env={})  # noqa: S603  our own interpreter
        self._socket.settimeout(_ANSWER_TIMEOUT_S)
        self._stream = self._socket.makefile("rwb")

    def ask(self, content: bytes) -> bytes:
        """Exchange one question for its answer.

        Raises:
            _ChildEnded: it died, or gets no CPU time.
        """
        try:
            _write(self._stream, content)
            answer = _read(self._stream)
        except OSError as error:
            raise _ChildEnded from error
        if answer is None:
            raise _ChildEnded
        return answer

    def end(self) -> int:
        """End the child; returns its exit code, negative for a signal.

        A child that closed its socket is about to exit by itself; its exit code says why.
        """
        with contextlib.suppress(OSError):  # the peer is gone, with unread data
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._stream.close()
        self._socket.close()
        try:
            return self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _write(stream: BufferedRWPair, content: bytes) -> None:
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def _read(stream: BufferedRWPair) -> bytes | None:
    """One message; None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    length = _LENGTH.unpack(head)[0]
    content = stream.read(length)
    return content if len(content) == length else None


def _error_of(answer: _Answer) -> Exception:
    if answer.problem == "syntax":
        return ModelRefused("The model's chat template is not valid Jinja; import it with another chat_template.jinja.")
    if answer.problem == "overlong":
        message = (
            "The model's chat template takes more time, memory or text for this conversation than it may. Shorter "
            "messages may help; an operator can give the model another template."
        )
    elif answer.problem == "raised":
        message = f"The model's chat template refuses this conversation: {answer.detail}"
    else:
        message = f"The model's chat template does not take such a conversation ({answer.detail})."
    return InvalidRequest(message, param="messages")


# Runs in the child.


def main() -> None:
    """Answer questions on file descriptor 0 until its other end is closed."""
    _limit()
    with contextlib.suppress(OSError), socket.socket(fileno=0) as connection, connection.makefile("rwb") as stream:
        while (content := _read(stream)) is not None:
            signal.setitimer(signal.ITIMER_PROF, _CPU_S)
            answer = msgspec.json.encode(_answered(msgspec.json.decode(content, type=_Question)))
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write(stream, answer)


def _limit() -> None:
    """Limit memory, forbid core files and debuggers, and ignore signals that a terminal sends to the process group.

    While requests drain, the web process still renders. The child exits when its socket closes.
    """
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _answered(question: _Question) -> _Answer:
    try:
        texts = constants(question.source) if question.render is None else [_rendered(question.render)]
        "".join(texts).encode()  # a lone surrogate raises here: it cannot be encoded
        return _Answer(texts=texts)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)  # there may be too little memory left to answer
    except Overlong:
        return _Answer(problem="overlong")
    except Raised as error:
        return _Answer(problem="raised", detail=_one_line(error.message or ""))
    except jinja2.TemplateSyntaxError:
        return _Answer(problem="syntax")
    except Exception as error:  # noqa: BLE001  (a template is a program and can raise anything)
        return _Answer(problem="failed", detail=type(error).__name__)


def _rendered(render: Render) -> str:
    messages = render.messages
    if render.mark:
        finder = _finder(render.markers)
        messages = guarded_values(messages, render.mark, lambda text: finder.broken(text, render.mark))
    variables = {
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": render.opens_answer,
        "bos_token": render.bos_token,
        "eos_token": render.eos_token,
    }
    return rendered(render.source, variables, max_chars=MAX_RENDERED_CHARS)


@functools.lru_cache(maxsize=4)
def _finder(markers: tuple[str, ...]) -> MarkerFinder:
    return MarkerFinder(markers)


def _one_line(text: str) -> str:
    """One printable, short line: it is shown to the caller."""
    shown = "".join(char if char.isprintable() else " " for char in text[:_MAX_MESSAGE_CHARS])
    return " ".join(shown.split())


if __name__ == "__main__":
    main()
