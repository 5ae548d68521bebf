"""Forward sealing: the key is ratcheted every epoch, so today's key cannot forge yesterday's records.

::

    K(0)                 32 random bytes, made with the log; the auditor moves it off the machine
    K(e+1)               HMAC-SHA256(K(e), "chatsvc audit ratchet v1")
    mac key of epoch e   HMAC-SHA256(K(e), "chatsvc audit mac v1")
    epoch of a time t    floor((t - start) / length), seconds since 1970

A record's ``epoch`` must be the epoch of its ``ts``: a record dated yesterday but sealed with today's key is detected,
although its MAC is right for that key (CVE-2023-31439: another program lacked this check). The step from e to a later f
is itself a record under K(e) that names f (``audit.epoch``), so an epoch's end cannot be cut off without K(e) either.
Pure; knows nothing about files.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from chatsvc.errors import ChatsvcError

EPOCH_ACTION = "audit.epoch"
_TITLE = "chatsvc-audit-seal-v1"
_MICRO = 1_000_000


class SealInvalid(ChatsvcError):
    """A text is not a sealing key."""

    code = "seal_invalid"
    message = f"The sealing key is not of the form '{_TITLE} LOG_ID START LENGTH EPOCH KEY'."


@dataclass(frozen=True, slots=True)
class Epochs:
    """How time is divided into epochs: ``start_s`` and ``length_s`` in whole seconds."""

    start_s: int
    length_s: int

    def at(self, microseconds: int) -> int:
        """The epoch of a moment."""
        return (microseconds - self.start_s * _MICRO) // (self.length_s * _MICRO)

    def last_us(self, epoch: int) -> int:
        """The last moment of an epoch."""
        return (self.start_s + (epoch + 1) * self.length_s) * _MICRO - 1


@dataclass(frozen=True, slots=True)
class SealKey:
    """The ratchet's position: the key of one epoch of one log. It can only move forward."""

    log_id: str
    epochs: Epochs
    epoch: int
    key: bytes

    def forward(self, epoch: int) -> SealKey:
        """The key of a later epoch."""
        assert epoch >= self.epoch, "the ratchet only moves forward"
        key = self.key
        for _ in range(epoch - self.epoch):
            key = hmac.digest(key, b"chatsvc audit ratchet v1", "sha256")
        return SealKey(self.log_id, self.epochs, epoch, key)

    @property
    def mac_key(self) -> bytes:
        """The key of the MACs of this epoch's records."""
        return hmac.digest(self.key, b"chatsvc audit mac v1", "sha256")


def format_seal_key(key: SealKey) -> str:
    """One line of text: stored on the machine, and for epoch 0 also handed to the auditor."""
    return f"{_TITLE} {key.log_id} {key.epochs.start_s} {key.epochs.length_s} {key.epoch} {key.key.hex()}\n"


def parse_seal_key(text: str) -> SealKey:
    """Read what :func:`format_seal_key` wrote."""
    try:
        _, log_id, start, length, epoch, key = text.split()
        parsed = SealKey(log_id, Epochs(int(start), int(length)), int(epoch), bytes.fromhex(key))
    except ValueError:
        raise SealInvalid from None
    if format_seal_key(parsed) != text or len(parsed.key) != 32 or parsed.epochs.length_s < 1 or parsed.epoch < 0:
        raise SealInvalid
    return parsed
