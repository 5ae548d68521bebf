"""The options of an audit log. Knows nothing about where their values come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Level = Literal["metadata", "redacted", "sealed"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another replica that is a witness.

    Attributes:
        url: its address, with the prefix it is served under, if any.
        key: an API key of the peer with scope ``witness``.
        ca_file: the CA certificates to trust; None uses the system's.
    """

    url: str
    key: str = field(repr=False)
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """The options of one log.

    Attributes:
        directory: the log's segments. keys: signing key, HMAC key and sealing state. origin: prefix of the checkpoints'
        origin; the log's id follows it. checkpoint_records, checkpoint_interval_s: a checkpoint is due after so many
        records, or so long after the last one. segment_bytes, segment_age_s: a new segment begins at this size or age.
        epoch_s: lifetime of one sealing key. denial_window_s: refusals of unknown callers (also failed logins) are
        summed over this time; longer in a flood. max_denials_in_window: how many kinds of them get a record of their
        own in a window; the rest is only counted. retry_s: interval between attempts to write while the disk is full.
        commit_timeout_s: a disk that takes longer for one commit counts as not writable. lock_timeout_s: how long to
        wait for another process that holds the log. second_directory: a second copy of the log, best on another file
        system; one working copy is enough. witness_files, witness_syslog, witness_url, witness_peer: where checkpoints
        are sent: files on other mounts, the
            socket of a system log, a database, another replica.
        level: how much of a request's content a record holds; ``sealed`` needs ``auditor_key``, an X25519 public key.
        space_alarm: a file system that is fuller than this (0 to 1) raises an alarm.
        about: details of the record of every start: version and a digest of the configuration, so that changes show.
    """

    directory: Path
    keys: Path
    origin: str = "chatsvc.local/audit"
    checkpoint_records: int = 256
    checkpoint_interval_s: float = 60
    segment_bytes: int = 64 * 1024 * 1024
    segment_age_s: float = 86_400
    epoch_s: int = 900
    denial_window_s: float = 10
    max_denials_in_window: int = 32
    retry_s: float = 1
    commit_timeout_s: float = 10
    lock_timeout_s: float = 5
    second_directory: Path | None = None
    witness_files: tuple[Path, ...] = ()
    witness_syslog: str | None = None
    witness_url: str | None = field(default=None, repr=False)  # it may hold a password
    witness_peer: Peer | None = None
    level: Level = "metadata"
    auditor_key: Path | None = None
    space_alarm: float = 0.8
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def directories(self) -> list[Path]:
        """The directories that hold this log: one or two."""
        return [self.directory, *([self.second_directory] if self.second_directory else [])]
