"""A scripted engine: the real loop, socket and client around a runner that gives the ids it was told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chatsvc.engine.engine_side.connections import Clients
from chatsvc.engine.engine_side.loop import Loop, LoopOptions
from chatsvc.engine.protocol import Hello
from chatsvc.engine.runners.base import StepOutput
from chatsvc.engine.sockets import Listener
from chatsvc.models.card import ModelCard


@dataclass
class Script:
    """What the runner does; a test may change it while it runs."""

    ids: Sequence[int] = ()
    end: str = "stop"
    detail: str = ""
    step_s: float = 0.002
    silent: threading.Event = field(default_factory=threading.Event)
    prompts: list[list[int]] = field(default_factory=list)
    public: list[list[int]] = field(default_factory=list)
    running: set[int] = field(default_factory=set)


class ScriptedRunner:
    """Gives every sequence the script's ids, one a step, then the script's end."""

    def __init__(self, card: ModelCard, script: Script) -> None:
        self.card = card
        self.max_num_seqs = 2
        self._script = script
        self._sequences: dict[int, tuple[list[int], int]] = {}

    def warm_up(self) -> None:
        """Nothing to warm."""

    def add(self, sequence_id, prompt_ids, sampling, sharing_key, num_public=0, constraint=None) -> None:
        self._script.prompts.append(list(prompt_ids))
        self._script.public.append(list(prompt_ids)[:num_public])
        self._sequences[sequence_id] = (list(self._script.ids), sampling.max_tokens)
        self._script.running.add(sequence_id)

    def cancel(self, sequence_id) -> None:
        self._sequences.pop(sequence_id, None)
        self._script.running.discard(sequence_id)

    def step(self) -> list[StepOutput]:
        time.sleep(self._script.step_s)
        if self._script.silent.is_set():
            return []
        return [self._next(sequence_id) for sequence_id in list(self._sequences)]

    def _next(self, sequence_id) -> StepOutput:
        ids, left = self._sequences[sequence_id]
        if not ids:
            self.cancel(sequence_id)
            return StepOutput(sequence_id, [], 1, self._script.end, detail=self._script.detail)
        first, *rest = ids
        self._sequences[sequence_id] = (rest, left - 1)
        if left == 1:
            self.cancel(sequence_id)
            return StepOutput(sequence_id, [first], 1, "length")
        return StepOutput(sequence_id, [first], 1)

    def rest(self) -> bool:
        return False

    def cache_usage(self) -> float:
        return 0.0


@pytest.fixture
def start_engine() -> Callable[..., Callable[[], None]]:
    """``stop = start_engine(path, card, script)``: an engine in a thread; it is drained at the end."""
    loops: list[tuple[Loop, threading.Thread, Script]] = []

    def start(path: Path, card: ModelCard, script: Script) -> Callable[[], None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        hello = Hello(card=card, max_num_seqs=2, pid=1)
        loop = Loop(
            ScriptedRunner(card, script),
            Clients(Listener(path), hello),
            LoopOptions(accept_while_draining_s=0.05, drain_timeout_s=0.3),
        )
        thread = threading.Thread(target=loop.run, daemon=True)
        thread.start()
        loops.append((loop, thread, script))
        return loop.request_drain

    yield start
    for loop, thread, script in loops:
        script.silent.clear()
        loop.request_drain()
        thread.join(10)
