"""The one double: a runner that does what a script says. Everything around it is real."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import StepOutput
from chatsvc.engine.runners.grammars import Constraint
from tests.engine.filemodel import make_card

REFUSED_ID = 666
EOS_ID = 2
# How many calls of rest() it takes until there is nothing more to do.
RESTS = 3


@dataclass
class _Entry:
    prompt_ids: list[int]
    sampling: Sampling
    num_prefill_steps: int
    num_generated: int = 0


class ScriptedRunner:
    """Each sequence answers with its prompt's last id + 1, + 2 ... Prefill takes one step per ten prompt ids.

    ``before_step`` is called in every step: it can sleep, hang or raise. It rests in so many calls as RESTS says.
    """

    def __init__(self, max_num_seqs: int = 4, step_s: float = 0.002, before_step: Callable[[], None] | None = None):
        self.card = make_card("scripted")
        self.max_num_seqs = max_num_seqs
        self.step_s = step_s
        self.before_step = before_step or (lambda: None)
        self.entries: dict[int, _Entry] = {}
        self.cancelled: list[int] = []
        self.batch_sizes: list[int] = []
        self.sharing_keys: list[str] = []
        self.is_warm = False
        self.num_rests = 0

    def warm_up(self) -> None:
        self.is_warm = True

    def add(
        self,
        sequence_id: int,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        sharing_key: str,
        num_public: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        del constraint
        if REFUSED_ID in prompt_ids:
            raise ValueError("scripted")
        self.sharing_keys.append(sharing_key)
        self.entries[sequence_id] = _Entry(list(prompt_ids), sampling, (len(prompt_ids) - 1) // 10)

    def cancel(self, sequence_id: int) -> None:
        if self.entries.pop(sequence_id, None) is not None:
            self.cancelled.append(sequence_id)

    def step(self) -> list[StepOutput]:
        time.sleep(self.step_s)
        self.before_step()
        self.batch_sizes.append(len(self.entries))
        outputs = []
        for sequence_id, entry in list(self.entries.items()):
            if entry.num_prefill_steps:
                entry.num_prefill_steps -= 1
                continue
            entry.num_generated += 1
            token = entry.prompt_ids[-1] + entry.num_generated
            if token == EOS_ID:
                outputs.append(StepOutput(sequence_id, [], 1, "stop"))
            elif entry.num_generated == entry.sampling.max_tokens:
                outputs.append(StepOutput(sequence_id, [token], 1, "length"))
            else:
                outputs.append(StepOutput(sequence_id, [token], 1))
        for output in outputs:
            if output.finish_reason is not None:
                del self.entries[output.sequence_id]
        return outputs

    def rest(self) -> bool:
        assert not self.entries
        self.num_rests += 1
        return self.num_rests % RESTS != 0

    def cache_usage(self) -> float:
        return len(self.entries) / self.max_num_seqs
