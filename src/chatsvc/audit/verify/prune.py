"""Retention: removes whole segments older than law and policy require, and leaves a signed tombstone.

1. The period is at least 180 days (Cybersecurity Law of China, article 21; GB/T 22239-2019, 8.1.5.4).
2. A log that does not verify is not pruned: it is evidence.
3. The tombstone is durable before a segment is removed. Segments that a crash leaves behind are ignored by the
   verifier and removed the next time.
4. The segment that is being written is never removed.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatsvc.audit import keys
from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import Signer
from chatsvc.audit.format.record import decode, format_time
from chatsvc.audit.format.rules import position_at
from chatsvc.audit.format.segment import first_line, header_times, whole_lines
from chatsvc.audit.format.tombstone import Tombstone, format_tombstone
from chatsvc.audit.verify.log import Trust, verify_log
from chatsvc.audit.verify.verdict import CLEAN, Verdict
from chatsvc.disk.durable import replace_file, sync_directory
from chatsvc.errors import ChatsvcError, ConfigurationInvalid

MIN_DAYS = 180
_DAY_US = 86_400_000_000


class NotPruned(ChatsvcError):
    """A log does not verify; the verdict says why."""

    code = "not_pruned"

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"Nothing was pruned, because {verdict.what} does not verify: {verdict.message}")
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed from one log; ``num_records`` counts from record 0."""

    log_id: str
    segments: tuple[str, ...]
    num_records: int
    newest: str


def read_policy(path: Path) -> int:
    """The retention in days that a policy file asks for.

    Raises:
        ConfigurationInvalid: it cannot be read, or asks for less than the law.
    """
    try:
        days = tomllib.loads(path.read_text(encoding="utf-8"))["retention"]["days"]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigurationInvalid([f"{path}: retention.days cannot be read ({error})"]) from None
    if not isinstance(days, int) or days < MIN_DAYS:
        raise ConfigurationInvalid([f"{path}: retention.days must be a whole number of at least {MIN_DAYS}"])
    return days


def prunable(directory: Path, days: int, now_us: int) -> list[Path]:
    """The segments whose records are all older than so many days, oldest first; never the last segment (4)."""
    assert days >= MIN_DAYS, "the policy was read by read_policy"  # (1)
    segments, limit = layout.segments(directory), now_us - days * _DAY_US
    # A segment's records are not later than the header of the next one, by log time. The wall clock may have been set
    # back, or have been years behind for a while: a segment is removed only if it is old by both.
    headers = [(segment, header_times(following)) for segment, following in itertools.pairwise(segments)]
    old = [segment for segment, times in headers if max(times.wall_us, times.log_us) < limit]
    return old if old == segments[: len(old)] else []


def prune(directory: Path, keys_directory: Path, days: int, now_us: int) -> Pruned | None:
    """Remove what may be removed from one log; None if nothing may.

    Raises:
        NotPruned: the log does not verify.
    """
    verdict = verify_log(directory, Trust(home=keys.trusted_keys(keys_directory)))
    if verdict.exit_code != CLEAN:  # (2)
        raise NotPruned(verdict)
    old = prunable(directory, days, now_us)
    if not old:
        return None
    stone = _stone(old, layout.segments(directory)[len(old)], days, now_us)
    signer = Signer(stone.origin, keys.signing_key(keys_directory, create=False))
    replace_file(directory / layout.TOMBSTONE, signer.sign(format_tombstone(stone)).encode(), 0o644)  # (3)
    for segment in old:
        segment.unlink()
        layout.checkpoints_of(segment).unlink(missing_ok=True)
    sync_directory(directory)
    log_id = stone.origin.rpartition("/")[2]
    return Pruned(log_id, tuple(each.name for each in old), stone.size, stone.newest)


def _stone(old: Sequence[Path], following: Path, days: int, now_us: int) -> Tombstone:
    line = first_line(following)
    position = position_at(line)
    *_, last = whole_lines(old[-1])
    return Tombstone(
        origin=decode(line)["segment"]["origin"],
        size=position.seq,
        root=position.frontier.root(),
        newest=decode(last)["ts"],
        pruned_at=format_time(now_us),
        retention_days=days,
    )
