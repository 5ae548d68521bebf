"""One HTTP request to the service of this configuration, over TCP or its unix socket. Knows nothing about retrying."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import httpx

from chatsvc.settings.load import Settings, child_environment, environment_value, load

_TIMEOUT_S = 2.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  (to connect, not to listen)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    text: str


def settings_as_run() -> Settings:
    """The configuration, with PORT and HOST in front of it, as `make run` takes them."""
    given = {"CHATSVC_SERVER__PORT": environment_value("PORT"), "CHATSVC_SERVER__HOST": environment_value("HOST")}
    return load(child_environment({name: value for name, value in given.items() if value is not None}))


def base_url(settings: Settings) -> str:
    """Where a program on this machine reaches the web process when it listens on TCP."""
    host = _ANY.get(settings.server.host, settings.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def get(settings: Settings, path: str) -> Answer | None:
    """GET ``path``; None where nobody answers."""
    socket = settings.server.socket
    transport = httpx.HTTPTransport(uds=str(socket)) if socket else httpx.HTTPTransport()
    # Behind a unix socket sits a proxy that says who asks; here that is this machine.
    headers = {"X-Forwarded-For": "127.0.0.1"} if socket else {}
    url = "http://chatsvc" if socket else base_url(settings)
    with contextlib.suppress(httpx.TransportError), httpx.Client(transport=transport, timeout=_TIMEOUT_S) as client:
        response = client.get(url + path, headers=headers)
        return Answer(response.status_code, response.text)
    return None


def answers(settings: Settings) -> bool:
    """Whether the whole service is ready; 403 counts, because this machine need not be on the allow list."""
    answer = get(settings, "/readyz")
    return answer is not None and answer.status in {200, 403}
