"""``python -m bench.audit``: what the audit log costs: durable records a second, CPU a request, verification.

Group commit on this machine's disk and on simulated slow ones (an fdatasync that takes so much longer), with 1, 16 and
64 writers; then a long log is verified.
"""

from __future__ import annotations

import os
import resource
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import page, program
from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format.ratchet import parse_seal_key
from chatsvc.audit.keys import initial_seals
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.verify.log import Trust, verify_log
from chatsvc.audit.verify.verdict import CLEAN
from chatsvc.audit.write.journal import Draft, Journal
from chatsvc.audit.write.opening import open_journal, open_mirror
from chatsvc.audit.write.timekeeping import system_clock
from chatsvc.disk.append import Calls

FACTS = Facts("5c1d7f0a9be84b0c", "chat.generate", "alice", "s" * 32, "j" * 32, "10.0.0.7", "POST", "/chat", "d" * 64)
RESULT = Result("allowed", 200, num_prompt_tokens=64, num_completion_tokens=128)
BATCH = 512


def main() -> None:
    """Measure and print."""
    parser = program.parser(__doc__, has_cache=False)
    parser.add_argument("--seconds", type=float, default=3, help="for each line of the table")
    parser.add_argument("--records", type=int, default=1_000_000, help="of the log that is verified")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        commits = [
            commit_speed(Path(place) / f"{writers}-{slow_ms}", writers, slow_ms, arguments.seconds)
            for slow_ms in (0, 4, 10)
            for writers in (1, 16, 64)
        ]
        verification = verify_speed(Path(place) / "long", arguments.records)
    print(table(commits, verification))
    if not arguments.not_kept:
        page.save("audit", {"commits": commits, "verification": verification}, table(commits, verification))


def commit_speed(home: Path, writers: int, slow_ms: float, seconds: float) -> dict[str, float]:
    """Begin and end, again and again, from so many threads."""

    def fdatasync(descriptor: int) -> None:
        if slow_ms:
            time.sleep(slow_ms / 1000)
        os.fdatasync(descriptor)

    log = AuditLog.open(AuditOptions(home / "audit", home / "keys"), calls=Calls(fdatasync=fdatasync))
    waits: list[float] = []
    end = time.monotonic() + seconds

    def write() -> None:
        while (start := time.monotonic()) < end:
            record = log.begin(FACTS)
            waits.append(time.monotonic() - start)
            record.end(RESULT)

    threads = [threading.Thread(target=write) for _ in range(writers)]
    cpu = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu = time.process_time() - cpu
    log.close()
    waits.sort()
    return {
        "writers": writers,
        "slower_fdatasync_ms": slow_ms,
        "records_per_s": round(2 * len(waits) / seconds),
        "begin_p50_ms": round(1000 * waits[len(waits) // 2], 2),
        "begin_p99_ms": round(1000 * waits[len(waits) * 99 // 100], 2),
        "cpu_per_request_ms": round(1000 * cpu / len(waits), 3),
    }


def verify_speed(home: Path, num_records: int) -> dict[str, float]:
    """Write a long log (without waiting for the disk), then verify it with public keys only, and with the seal."""
    calls = Calls(fdatasync=lambda _: None)
    options = AuditOptions(home / "audit", home / "keys")
    with ExitStack() as opened:
        fill(open_journal(options, system_clock(), open_mirror(options, calls, opened)), num_records)
    seals = tuple(parse_seal_key(path.read_text()) for path in initial_seals(home / "keys"))
    size = sum(path.stat().st_size for path in (home / "audit").iterdir())
    return {
        "records": num_records,
        "bytes_per_record": round(size / num_records),
        "verify_s": timed(home / "audit", Trust()),
        "verify_with_seal_s": timed(home / "audit", Trust(seal_keys=seals)),
        "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def fill(journal: Journal, num_records: int) -> None:
    """Records straight into the journal, a checkpoint every 256."""
    written = journal.position.seq
    while written < num_records:
        drafts: list[Draft] = [journal.draft("event", FACTS, RESULT) for _ in range(BATCH // 2)]
        journal.keep_up()
        journal.commit(drafts)
        journal.checkpoint()
        written += len(drafts)


def timed(directory: Path, trust: Trust) -> float:
    """Seconds of one verification, which must succeed."""
    start = time.monotonic()
    verdict = verify_log(directory, trust)
    assert verdict.exit_code == CLEAN, verdict.message
    return round(time.monotonic() - start, 1)


def table(commits: Sequence[dict[str, float]], verification: dict[str, float]) -> str:
    """Markdown."""
    names = list(commits[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---:|" * len(names)]
    lines += ["| " + " | ".join(str(each[name]) for name in names) + " |" for each in commits]
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in verification.items())])


if __name__ == "__main__":
    main()
