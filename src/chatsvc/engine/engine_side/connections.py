"""The engine's side of all connections: the clients, received frames, frames to send. Knows no sequence.

It never blocks on a client: unread bytes are kept up to a cap, and beyond it the client is dropped.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Sequence
from dataclasses import dataclass, field

from chatsvc.engine.protocol import ProtocolError, ToEngine, ToWeb, decode_to_engine, encode_frame
from chatsvc.engine.sockets import Connection, Listener

_log = logging.getLogger(__name__)

# The most bytes kept for a client that does not read, besides the greeting (which holds a tokenizer of several MB).
_MAX_UNSENT_BYTES = 1024 * 1024


@dataclass(slots=True, eq=False)
class Client:
    """A connection, and the frames of the current step that :meth:`Clients.send` sends together."""

    connection: Connection
    outbox: bytearray = field(default_factory=bytearray)


class Clients:
    """Owns the listener and every connection.

    Args:
        listener: accepts the clients.
        greeting: the first message to each.
    """

    def __init__(self, listener: Listener, greeting: ToWeb) -> None:
        self._listener = listener
        self._greeting = encode_frame(greeting)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener.sock, selectors.EVENT_READ, None)
        self._clients: set[Client] = set()

    def poll(self, timeout_s: float) -> tuple[list[tuple[Client, ToEngine]], list[Client]]:
        """Received messages and new clients; waits for them up to the timeout."""
        messages: list[tuple[Client, ToEngine]] = []
        newcomers: list[Client] = []
        for key, events in self._selector.select(timeout_s):
            client: Client | None = key.data
            if client is None:
                newcomers += self._welcome()
                continue
            if events & selectors.EVENT_WRITE:
                client.connection.flush()
            if events & selectors.EVENT_READ:
                messages += [(client, message) for message in _received(client)]
        return messages, newcomers

    def drop_broken(self) -> list[Client]:
        """Close connections that ended, sent invalid frames or were not read; returns their clients."""
        broken = [client for client in self._clients if client.connection.broken]
        for client in broken:
            self.drop(client)
        return broken

    def drop(self, client: Client) -> None:
        """Close one connection."""
        self._clients.discard(client)
        self._selector.unregister(client.connection.sock)
        client.connection.close()

    def post(self, client: Client, message: ToWeb) -> None:
        """Put a message into a client's outbox."""
        client.outbox += encode_frame(message)

    def post_all(self, message: ToWeb) -> None:
        """Put a message into every outbox."""
        frame = encode_frame(message)
        for client in self._clients:
            client.outbox += frame

    def send(self) -> None:
        """Send as much as the sockets accept now."""
        for client in self._clients:
            connection = client.connection
            if client.outbox:
                connection.send(bytes(client.outbox))
                client.outbox.clear()
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_write else 0)
            if self._selector.get_key(connection.sock).events != events:
                self._selector.modify(connection.sock, events, client)

    def close(self) -> None:
        """Stop listening and close all."""
        self._listener.close()
        for client in self._clients:
            client.connection.close()
        self._clients.clear()
        self._selector.close()

    def _welcome(self) -> Sequence[Client]:
        newcomers = []
        while (sock := self._listener.accept()) is not None:
            limit = len(self._greeting) + _MAX_UNSENT_BYTES
            client = Client(Connection(sock, max_unsent_bytes=limit), bytearray(self._greeting))
            self._selector.register(sock, selectors.EVENT_READ, client)
            self._clients.add(client)
            newcomers.append(client)
        return newcomers


def _received(client: Client) -> list[ToEngine]:
    try:
        return [decode_to_engine(payload) for payload in client.connection.receive()]
    except ProtocolError as error:
        _log.warning("a client is dropped: %s", error.message)
        client.connection.broken = True
        return []
