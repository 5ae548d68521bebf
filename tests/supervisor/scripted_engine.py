"""A program that is an engine in everything but the model: the real loop and socket around a scripted runner.

    CHATSVC_ENGINE__SOCKET=SOCKET scripted_engine.py HOME

Files in HOME steer it: ``refuse`` makes it end with code 3 before it serves, ``hang`` makes its next step never end,
``mute`` (as it is when it starts) makes every sequence end with an error, ``unusable`` gives it a card that clients
refuse.
Each start adds a line to ``starts``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from chatsvc.engine.engine_side.connections import Clients
from chatsvc.engine.engine_side.loop import Loop, LoopOptions
from chatsvc.engine.protocol import Hello
from chatsvc.engine.runners.base import StepOutput
from chatsvc.engine.sockets import Listener
from chatsvc.models.card import ModelCard

CARD = ModelCard(
    name="scripted",
    digest="0" * 64,
    revision="0",
    created=0,
    context_length=1024,
    eos_token_ids=[0],
    tokenizer_json=b"{}",
    chat_template="",
)


class ScriptedRunner:
    """Gives every sequence the token 7, one a step, 20 ms each."""

    def __init__(self, home: Path) -> None:
        self.card = CARD
        self.max_num_seqs = 4
        self._home = home
        self._is_mute = (home / "mute").exists()
        self._left: dict[int, int] = {}

    def warm_up(self) -> None:
        pass

    def add(self, sequence_id, prompt_ids, sampling, sharing_key, num_public=0, constraint=None) -> None:
        self._left[sequence_id] = sampling.max_tokens

    def cancel(self, sequence_id) -> None:
        self._left.pop(sequence_id, None)

    def step(self) -> list[StepOutput]:
        while (self._home / "hang").exists():
            time.sleep(0.05)
        time.sleep(0.02)
        outputs = []
        for sequence_id in list(self._left):
            if self._is_mute:
                outputs.append(StepOutput(sequence_id, [], 0, "error", detail="mute"))
                del self._left[sequence_id]
                continue
            self._left[sequence_id] -= 1
            last = self._left[sequence_id] == 0
            if last:
                del self._left[sequence_id]
            outputs.append(StepOutput(sequence_id, [7], 1, "length" if last else None))
        return outputs

    def rest(self) -> bool:
        return False

    def cache_usage(self) -> float:
        return 0.0


def main() -> int:
    path, home = Path(os.environ["CHATSVC_ENGINE__SOCKET"]), Path(sys.argv[1])
    with (home / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    if (home / "refuse").exists():
        return 3
    runner = ScriptedRunner(home)
    card = msgspec.structs.replace(CARD, name="unusable") if (home / "unusable").exists() else CARD
    hello = Hello(card=card, max_num_seqs=4, pid=os.getpid())
    loop = Loop(runner, Clients(Listener(path), hello), LoopOptions())
    signal.signal(signal.SIGTERM, lambda *_: loop.request_drain())
    loop.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
