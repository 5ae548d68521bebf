"""HTTP requests to the service of a home, over TCP or its unix socket. Knows nothing about retrying."""

from __future__ import annotations

import contextlib
import ssl

import httpx

from chatsvc.settings.load import Settings
from chatsvc.supervisor.address import UNIX, address_of

_TIMEOUT_S = 2.0


def connect(address: str, timeout: httpx.Timeout, tls: ssl.SSLContext | bool = True) -> httpx.Client:  # noqa: FBT001, FBT002  (httpx takes either)
    """A client of the service at an address."""
    path = address.removeprefix(UNIX) if address.startswith(UNIX) else None
    if path is None:
        return httpx.Client(base_url=address, timeout=timeout, verify=tls, trust_env=False)
    # On its unix socket the web process expects a proxy that names the client, which is this machine here.
    headers = {"X-Forwarded-For": "127.0.0.1"}
    transport = httpx.HTTPTransport(uds=path)
    return httpx.Client(base_url="http://chatsvc", transport=transport, headers=headers, timeout=timeout)


def get(address: str, path: str) -> httpx.Response | None:
    """GET ``path``; None if nothing answers."""
    with contextlib.suppress(httpx.TransportError), connect(address, httpx.Timeout(_TIMEOUT_S)) as client:
        return client.get(path)
    return None


def answers(settings: Settings) -> bool:
    """Whether the whole service is ready. 403 counts too, because this machine need not be on the allow list."""
    response = get(address_of(settings), "/readyz")
    return response is not None and response.status_code in {200, 403}
