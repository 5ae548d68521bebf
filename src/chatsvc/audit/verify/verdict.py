"""The result of a verification. The exit codes are part of the format (docs/reference/audit-format.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CLEAN = 0
TAMPERED = 1
TORN_TAIL = 4
FEWER_RECORDS = 5
UNKNOWN_KEY = 6
_GRAVITY = (TAMPERED, UNKNOWN_KEY, FEWER_RECORDS, TORN_TAIL, CLEAN)


@dataclass(frozen=True, slots=True)
class Verdict:
    """About one log.

    Attributes:
        exit_code: one of the codes above.
        message: one sentence that names the record.
        what: the directory or file.
        log_id: the log's id, None if not even that could be read.
        seq: the record it is about, None when all is well.
        first_seq, num_records: which records were read.
        num_covered: how many records checkpoints cover; the rest is protected by the chain only.
        num_open: acts begun and not (yet) ended.
        last_ts: time of the last record.
        witnessed: the largest size that a witness confirmed; None without one.
        vouched: names and fingerprints of the keys that it was verified with.
        unvouched: the same of the keys that are not trusted.
    """

    exit_code: int
    message: str
    what: str
    log_id: str | None = None
    seq: int | None = None
    first_seq: int = 0
    num_records: int = 0
    num_covered: int = 0
    num_open: int = 0
    last_ts: str | None = None
    witnessed: int | None = None
    vouched: tuple[str, ...] = ()
    unvouched: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"ok": self.exit_code == CLEAN, **asdict(self)}


def worst(verdicts: list[Verdict]) -> int:
    """The gravest exit code of several verdicts."""
    return min((each.exit_code for each in verdicts), key=_GRAVITY.index, default=CLEAN)
