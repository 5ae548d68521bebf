"""Detects a hung engine, for the web process and the supervisor, each on its own connection. Starts no thread.

Slow is not hung: an engine may be silent inside a long step, and steps may be long.
"""

from __future__ import annotations

from chatsvc.engine.protocol import Heartbeat


class Progress:
    """The times of an engine's last frame, and of its last step or idle heartbeat.

    Args:
        now: monotonic seconds; both count from here on.
    """

    def __init__(self, now: float) -> None:
        self._heard_at = self._moved_at = now
        self._num_steps = -1

    def hear(self, now: float) -> None:
        """A frame was received."""
        self._heard_at = now

    def note(self, heartbeat: Heartbeat, now: float) -> None:
        """A heartbeat was received."""
        self.hear(now)
        if heartbeat.num_steps > self._num_steps or heartbeat.num_running == 0:
            self._moved_at = now
        self._num_steps = heartbeat.num_steps

    def is_hung(self, now: float, stall_timeout_s: float) -> bool:
        """Whether no frame was received, or no step was made while sequences run, for longer than the time-out."""
        return now - min(self._heard_at, self._moved_at) > stall_timeout_s
