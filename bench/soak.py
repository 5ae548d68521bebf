"""``python -m bench.soak``: ten thousand short requests, and whether the service's memory has grown by the end.

The embedded model, sixteen streams at a time, every prompt a new one. Memory is read by process after a first fifth
(caches have filled by then) and at the end. Bounded in number.
"""

from __future__ import annotations

import json
import os
import sys
import time

from bench import cpu, page, program
from bench.load import Streams, Target, chat
from bench.processes import end_on_sigterm
from bench.stack import StackOptions, stack
from bench.supply import Supply

_NUM_STREAMS = 16
_MAX_TOKENS = 2
_SETTLE_S = 3
_MAX_GROWTH_MIB = 32
# A cache that is full of what may be asked again before the first look, so that growth is growth.
_SETTINGS = {"engine.cache_size_gb": 0.1}


def main() -> None:
    """Run, write, and end with 1 when a request failed or a process grew."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args()
    _, model = Supply(arguments.cache).embedded()
    with stack(StackOptions(arguments.cache / "home-soak", model, "smollm2", _SETTINGS)) as target:
        num_failed = _ask(target, 0, arguments.requests // 5)
        before = _sizes()
        num_failed += _ask(target, arguments.requests // 5, arguments.requests)
        after = _sizes()
    outcome = {"num_requests": arguments.requests, "num_failed": num_failed, "before_mib": before, "after_mib": after}
    print(json.dumps(outcome))
    if not arguments.not_kept:
        page.save("soak", outcome, _table(before, after, arguments.requests, num_failed))
    grown = [role for role, size in after.items() if size - before.get(role, 0) > _MAX_GROWTH_MIB]
    sys.exit(f"grown: {grown}, failed: {num_failed}" if grown or num_failed else 0)


def _ask(target: Target, start: int, end: int) -> int:
    """Requests number ``start`` to ``end``; how many of them failed."""
    streams = Streams(target, _NUM_STREAMS)
    num_failed = 0
    for first in range(start, end, _NUM_STREAMS):
        bodies = [
            chat([{"role": "user", "content": f"Say {number} backwards."}], _MAX_TOKENS)
            for number in range(first, min(first + _NUM_STREAMS, end))
        ]
        num_failed += sum(bool(sample.error) for sample in streams.burst(bodies))
    streams.close()
    return num_failed


def _sizes() -> dict[str, int]:
    time.sleep(_SETTLE_S)
    return cpu.anonymous_mib_by_role(cpu.descendants(os.getpid()))


def _table(before: dict[str, int], after: dict[str, int], num_requests: int, num_failed: int) -> str:
    lines = [f"| process | MiB after {num_requests // 5} requests | after {num_requests} |", "|---|---|---|"]
    lines += [f"| {role} | {before.get(role, 0)} | {size} |" for role, size in after.items()]
    return "\n".join(lines) + f"\n\n{num_failed} of {num_requests} requests failed.\n"


if __name__ == "__main__":
    main()
