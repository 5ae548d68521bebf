"""The reasons to abort a running request: client gone, token revoked, deadline passed, process shutting down.

Knows nothing about connections or tokens: it is given functions that look at them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from chatsvc.chat.drain import Drain
from chatsvc.errors import AuthenticationFailed, ClientGone, DeadlineExceeded, Draining

# A database lookup costs as much as several tokens. Twice a second keeps within the second that is promised.
_REVOCATION_INTERVAL_S = 0.5


class AbortChecks:
    """Call :meth:`check` after every token; it really checks only every ``interval_s``.

    Make it right after the credentials were checked: the first look at them comes one interval later.
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
        self._next_check_at = clock()
        self._next_revocation_check_at = self._next_check_at + _REVOCATION_INTERVAL_S

    def check(self) -> None:
        """Check, if it is time to.

        Raises:
            ClientGone: the client has closed the connection.
            AuthenticationFailed: the token or key was revoked, or its account disabled.
            DeadlineExceeded: the request has reached its wall-clock limit.
            Draining: the process shuts down and its drain time is over.
        """
        now = self._clock()
        if now < self._next_check_at:
            return
        self._next_check_at = now + self._interval_s
        if self._is_gone():
            raise ClientGone
        if now >= self._next_revocation_check_at:
            self._next_revocation_check_at = now + _REVOCATION_INTERVAL_S
            if self._is_revoked():
                raise AuthenticationFailed("revoked while it was running")
        if now >= self._deadline:
            raise DeadlineExceeded
        if self._drain.is_over:
            raise Draining
