"""Hashes passwords with argon2id (RFC 9106), a bounded number at a time. Knows nothing about accounts.

One hash takes 19 MiB and tens of milliseconds; sixteen at once would exhaust the container's memory. So few callers
hash at once and a bounded number waits for a bounded time; the rest is refused.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from chatsvc.errors import InvalidRequest, Overloaded

MIN_PASSWORD_LENGTH = 15
MAX_PASSWORD_LENGTH = 128

_M_MMAP_THRESHOLD = -3  # mallopt(3)
_MMAP_FROM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PasswordOptions:
    """The cost of a hash, and how many callers may hash and wait at once."""

    memory_kib: int = 19_456
    time_cost: int = 3
    parallelism: int = 1
    max_parallel: int = 2
    max_waiting: int = 64
    max_wait_s: float = 10.0


class Slots:
    """Limits how many callers work at once, how many wait, and for how long."""

    def __init__(self, max_parallel: int, max_waiting: int, max_wait_s: float) -> None:
        self._slots = threading.BoundedSemaphore(max_parallel)
        self._admitted = threading.BoundedSemaphore(max_parallel + max_waiting)
        self._max_wait_s = max_wait_s

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the slots.

        Raises:
            Overloaded: too many callers wait already, or the wait took longer than ``max_wait_s``.
        """
        if not self._admitted.acquire(blocking=False):
            raise Overloaded("Too many logins at once; try again after the time in Retry-After.")
        try:
            if not self._slots.acquire(timeout=self._max_wait_s):
                raise Overloaded("Too many logins at once; try again after the time in Retry-After.")
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._admitted.release()


class Passwords:
    """Makes and checks hashes. Every call of the other methods belongs inside :meth:`slot`."""

    def __init__(self, options: PasswordOptions | None = None) -> None:
        self._options = options or PasswordOptions()
        self._hasher = PasswordHasher(
            time_cost=self._options.time_cost,
            memory_cost=self._options.memory_kib,
            parallelism=self._options.parallelism,
            type=Type.ID,
        )
        self._slots = Slots(self._options.max_parallel, self._options.max_waiting, self._options.max_wait_s)
        _give_memory_back()
        self._dummy_hash = self._hasher.hash("dummy for unknown accounts")

    def slot(self) -> AbstractContextManager[None]:
        """See :meth:`Slots.slot`."""
        return self._slots.slot()

    def hash(self, password: str) -> str:
        """The hash as a PHC string, with its parameters and salt."""
        return self._hasher.hash(password)

    def matches(self, password: str, stored_hash: str | None) -> bool:
        """Whether it is the password. Without a hash (unknown account) a dummy takes the same time; then False."""
        try:
            self._hasher.verify(stored_hash or self._dummy_hash, password)
        except (VerificationError, InvalidHashError):
            return False
        return bool(stored_hash)

    def is_outdated(self, stored_hash: str) -> bool:
        """Whether the hash was made with other cost parameters."""
        return self._hasher.check_needs_rehash(stored_hash)


def _give_memory_back() -> None:
    """Have glibc mmap the memory of each hash, so that it goes back to the system when the hash is done.

    By default the mmap threshold grows with freed blocks, up to 32 MiB; then each thread that ever hashed keeps 19 MiB
    in its arena (measured after fifty logins: 420 MB by default, 40 MB with a fixed threshold).
    """
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)


def check_password_rules(password: str, param: str = "new") -> None:
    """15 to 128 characters (NIST SP 800-63B-4 3.1.1.2), used as sent: not trimmed, folded or normalised.

    Raises:
        InvalidRequest: the password breaks a rule; the message names it.
    """
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise InvalidRequest(f"A password has {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters.", param=param)
    if not is_scalar_text(password):
        raise InvalidRequest("A password is Unicode text without NUL.", param=param)


def is_scalar_text(text: str) -> bool:
    """Whether the text has no NUL and no surrogate, which UTF-8 cannot encode."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)
