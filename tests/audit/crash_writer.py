"""Writes records from many threads and says on standard output which were acknowledged. Killed by a test."""

from __future__ import annotations

import sys
import threading
from itertools import count
from pathlib import Path

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions


def main(home: Path) -> None:
    options = AuditOptions(home / "audit", home / "keys", checkpoint_records=7, segment_bytes=20_000, epoch_s=1)
    log = AuditLog.open(options)
    name = sys.argv[2]

    def write(thread: int) -> None:
        for number in count():
            record = log.begin(Facts(f"{name}-{thread}-{number}", "chat.generate"))
            sys.stdout.write(f"{name}-{thread}-{number}\n")
            sys.stdout.flush()
            record.end(Result("allowed"))

    for thread in range(4):
        threading.Thread(target=write, args=(thread,)).start()


main(Path(sys.argv[1]))
