"""Looks after a running request: has the client gone, was the token revoked, is the time over?

Knows nothing about how a client's connection is looked at, or how a token is revoked.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from chatsvc.chat.drain import Drain
from chatsvc.errors import AuthenticationFailed, ClientGone, DeadlineExceeded, Draining

# A look into the store costs as much as several tokens do; half of the second that the contract allows is left.
_REVOCATION_INTERVAL_S = 0.5


class Watch:
    """Call :meth:`check` often; it looks at most every ``interval_s``, so that a token costs nothing.

    Make it when the credentials have just been checked: they are looked at again only after a while.
    """

    def __init__(
        self,
        is_gone: Callable[[], bool],
        is_revoked: Callable[[], bool],
        drain: Drain,
        *,
        deadline_s: float,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_gone = is_gone
        self._is_revoked = is_revoked
        self._drain = drain
        self._interval_s = interval_s
        self._clock = clock
        self._deadline = clock() + deadline_s
        self._next_look = clock()
        self._next_revocation_look = self._next_look + _REVOCATION_INTERVAL_S

    def check(self) -> None:
        """Look, if it is time to.

        Raises:
            ClientGone: nobody reads any more.
            AuthenticationFailed: the token, its family or its account is dead.
            DeadlineExceeded: the wall-clock limit of one request.
            Draining: the process goes down and its last moment has come.
        """
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + self._interval_s
        if self._is_gone():
            raise ClientGone
        if now >= self._next_revocation_look:
            self._next_revocation_look = now + _REVOCATION_INTERVAL_S
            if self._is_revoked():
                raise AuthenticationFailed("revoked while it was running")
        if now >= self._deadline:
            raise DeadlineExceeded
        if self._drain.is_over:
            raise Draining
