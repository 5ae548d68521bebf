"""Hashes passwords with argon2id, a bounded number at a time. Knows nothing about accounts.

One hash takes 19 MiB and tens of milliseconds; sixteen at once would take the container's memory. So callers take one
of few slots; who waits too long, or finds too many waiting, is refused instead of piling up.
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
    """Cost of one hash, and how many may be made at once."""

    memory_kib: int = 19_456
    time_cost: int = 3
    parallelism: int = 1
    max_parallel: int = 2
    max_waiting: int = 64
    max_wait_s: float = 10.0


class Turns:
    """So many at once, so many waiting, and none longer than so long."""

    def __init__(self, max_parallel: int, max_waiting: int, max_wait_s: float) -> None:
        self._slots = threading.BoundedSemaphore(max_parallel)
        self._places = threading.BoundedSemaphore(max_parallel + max_waiting)
        self._max_wait_s = max_wait_s

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One of the few slots.

        Raises:
            Overloaded: too many are waiting already, or the wait was too long.
        """
        if not self._places.acquire(blocking=False):
            raise Overloaded("Too many logins at once; try again after the time in Retry-After.")
        try:
            if not self._slots.acquire(timeout=self._max_wait_s):
                raise Overloaded("Too many logins at once; try again after the time in Retry-After.")
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._places.release()


class Passwords:
    """Makes and checks hashes. Take a slot with :meth:`turn` around every call of the other methods."""

    def __init__(self, options: PasswordOptions | None = None) -> None:
        self._options = options or PasswordOptions()
        self._hasher = PasswordHasher(
            time_cost=self._options.time_cost,
            memory_cost=self._options.memory_kib,
            parallelism=self._options.parallelism,
            type=Type.ID,
        )
        self._turns = Turns(self._options.max_parallel, self._options.max_waiting, self._options.max_wait_s)
        _give_memory_back()
        self._dummy_hash = self._hasher.hash("what an unknown account is compared with")

    def turn(self) -> AbstractContextManager[None]:
        """One of the few slots.

        Raises:
            Overloaded: too many are waiting already, or the wait was too long.
        """
        return self._turns.turn()

    def hash(self, password: str) -> str:
        """The PHC string to store."""
        return self._hasher.hash(password)

    def matches(self, password: str, stored_hash: str | None) -> bool:
        """Whether it is the password. Without a hash (unknown account) the same work is done for nothing."""
        try:
            self._hasher.verify(stored_hash or self._dummy_hash, password)
        except (VerificationError, InvalidHashError):
            return False
        return bool(stored_hash)

    def is_outdated(self, stored_hash: str) -> bool:
        """Whether the cost was changed since it was made."""
        return self._hasher.check_needs_rehash(stored_hash)


def _give_memory_back() -> None:
    """Have glibc map the memory of each hash on its own, so that it is returned with the hash.

    By default its threshold for that grows with what is freed, up to 32 MiB; then every thread that has ever hashed
    keeps 19 MiB in its arena (measured: 420 MB after fifty logins, 40 MB with this).
    """
    with suppress(AttributeError, OSError):  # another C library manages without
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)


def check_password_rules(password: str, param: str = "new") -> None:
    """15 to 128 characters as sent; nothing is trimmed, folded or composed (NIST SP 800-63B 3.1.1.2).

    Raises:
        InvalidRequest: naming the rule.
    """
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise InvalidRequest(f"A password has {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters.", param=param)
    if not is_scalar_text(password):
        raise InvalidRequest("A password is Unicode text without NUL.", param=param)


def is_scalar_text(text: str) -> bool:
    """Whether it is made of Unicode scalar values other than NUL: no lone surrogate, which cannot be encoded."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)
