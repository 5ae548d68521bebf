"""The engine without anything around it: the runner that the service uses, with its configuration, in this process.

As a program it loads the active model of CHATSVC_HOME and answers one line of JSON (prompts as ids, ``max_tokens``)
with one line (times); :class:`InProcess` talks to it. What it measures is what our layers are compared with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.load import Sample
from bench.shape import NUM_PUBLIC_TOKENS
from chatsvc.cli.service.engine import runner_options
from chatsvc.engine.process import harden
from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import Runner
from chatsvc.engine.runners.choice import load_runner
from chatsvc.models.store import ModelStore
from chatsvc.settings.load import load


class InProcess:
    """The program below, as a context. Idle between bursts."""

    def __init__(self, home: Path, log: Path) -> None:
        self._home = home
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.inprocess"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, "CHATSVC_HOME": str(self._home)},
            )
        assert self._process.stdout
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the engine in process did not start; its log is {self._log}")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def burst(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Sample]:
        """All prompts added at once and run to their end."""
        assert self._process.stdin
        assert self._process.stdout
        json.dump({"prompts": prompts, "max_tokens": max_tokens}, self._process.stdin)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return [Sample(0.0, status=200, num_completion=max_tokens, **sample) for sample in answer]


@dataclass(slots=True)
class _Progress:
    num_prompt: int
    first: float = 0.0
    ended: float = 0.0


def main() -> None:
    """Load, say ``ready``, then answer lines until standard input ends."""
    harden()
    settings = load()
    model = ModelStore(settings.models_directory, settings.keys_directory).active()
    assert model is not None
    with model.weights() as path:
        runner = load_runner(path, model.format, model.card(), runner_options(settings))
        runner.warm_up()
    _rest(runner)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_burst(runner, **json.loads(line))), flush=True)
        _rest(runner)


def _rest(runner: Runner) -> None:
    while runner.rest():
        pass


def _burst(runner: Runner, prompts: list[list[int]], max_tokens: int) -> list[dict[str, float]]:
    sampling = Sampling(max_tokens=max_tokens, temperature=0)
    started = time.perf_counter()
    waiting = list(enumerate(prompts))
    progress = {number: _Progress(len(prompt)) for number, prompt in waiting}
    num_running = 0
    while waiting or num_running:
        while waiting and num_running < runner.max_num_seqs:
            number, prompt = waiting.pop(0)
            runner.add(number, prompt, sampling, "bench", NUM_PUBLIC_TOKENS)
            num_running += 1
        for output in runner.step():
            now = time.perf_counter() - started
            one = progress[output.sequence_id]
            one.first = one.first or now
            if output.finish_reason is not None:
                one.ended = now
                num_running -= 1
    return [{"first": one.first, "ended": one.ended, "num_prompt": one.num_prompt} for one in progress.values()]


if __name__ == "__main__":
    main()
