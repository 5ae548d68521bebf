"""The default runner: continuous batching over our own forward pass.

A step is one pass: a row for each sequence that decodes, and a chunk of the prompts that prefill (the shortest first,
half for the oldest). The size of the chunk follows from the times of the last steps, so that no stream stalls. A page
that several prompts need is computed by one of them; the others wait for it.
A sequence's results do not depend, to the last bit, on batching, chunks or caching (csrc/kernels/kernels.h).

While few sequences run, draft tokens are taken from what they already hold and checked in the same pass.

A sequence joins when the cache has pages for its prompt and its longest completion, so none is ever evicted. A sequence
that needs many pages does not block smaller ones, and at most a batch of them may overtake it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from chatsvc.engine.engine_side.memory import private_bytes
from chatsvc.engine.protocol import NOT_FINITE, FinishReason, Sampling
from chatsvc.engine.runners.base import NotFinite, RunnerOptions, StepOutput
from chatsvc.engine.runners.grammars import Constraint
from chatsvc.engine.runners.native import library
from chatsvc.engine.runners.native.choosing import Chooser, Chosen
from chatsvc.engine.runners.native.drafts import Drafter
from chatsvc.engine.runners.native.filling import fill
from chatsvc.engine.runners.native.library import PAGE_TOKENS, Capacity, Model, Output
from chatsvc.engine.runners.native.pages import Pages
from chatsvc.engine.runners.native.sequences import (
    BatchPart,
    Member,
    end_of_chunk,
    fillers,
    lay_out,
    num_pages,
    output_of,
    share_out,
)
from chatsvc.engine.runners.native.weights import open_weights
from chatsvc.engine.runners.sizing import MIB, check_limit, num_cache_blocks
from chatsvc.engine.runners.steering import Steering
from chatsvc.errors import OperatorError
from chatsvc.models.card import ModelCard

# The process without weights and cache: Python, numpy, the model card, the buffers of a pass.
_PROCESS_BYTES = 140 * MIB
# A pass of this many rows takes less than twice as long as one of a single row, and a right draft saves a whole pass.
_MAX_GUESSING_ROWS = 8
# While several prompts wait, a pass takes no more of their tokens than this: the first of them is answered sooner, at
# hardly any cost in speed.
_CHUNK_OF_MANY = 128
# Cache that is faulted in ahead of need, for each sequence that may run.
_READY_TOKENS = 128


class NativeRunner:
    """A :class:`chatsvc.engine.runners.base.Runner`.

    Args:
        path: a ``.gguf`` file, or a folder with ``config.json`` and safetensors.
        card: what the model is.
        options: sizes.
        clock: monotonic seconds.

    Raises:
        NotServed: the model needs what this runner does not compute; another may serve it.
        OperatorError: it cannot be loaded, or does not fit.
    """

    def __init__(
        self, path: Path, card: ModelCard, options: RunnerOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_num_seqs = options.max_num_seqs
        self._options = options
        self._clock = clock
        self._eos = frozenset(card.eos_token_ids)
        weights = open_weights(path)
        self._vocabulary_size = weights.shape.vocabulary_size
        self._steering = Steering(max_chunk=options.prefill_chunk_tokens, max_gap_s=options.max_gap_ms / 1000)
        page_bytes = library.page_bytes(weights.shape)
        fixed_bytes = library.weights_bytes(weights.shape) + _PROCESS_BYTES
        longest = min(card.context_length, weights.max_tokens or card.context_length)
        self._pages = Pages(num_cache_blocks(page_bytes, fixed_bytes, longest, options))
        # A request that exceeds the cache is refused like one that exceeds the model's context.
        context_length = min(longest, len(self._pages) * PAGE_TOKENS)
        self.card = msgspec.structs.replace(card, runner="native", context_length=context_length)
        self._num_cache_bytes = len(self._pages) * page_bytes
        self._num_in_memory = 0  # pages faulted in, from the first on
        self._waiting: list[Member] = []
        self._running: dict[int, Member] = {}
        capacity = Capacity(
            max_tokens=context_length,
            max_rows=options.prefill_chunk_tokens + max(options.max_num_seqs, _MAX_GUESSING_ROWS),
            num_pages=len(self._pages),
            num_threads=options.num_threads or len(os.sched_getaffinity(0)),
        )
        self._model = Model(weights.shape, capacity)
        fill(self._model, weights)

    def warm_up(self) -> None:
        """Run two full chunks, of which the second is timed, and a full batch."""
        chunk = self._steering.max_chunk
        for first in (1, 2):
            self._run_to_end([[first, *range(1, min(chunk, self.card.context_length - 1))]], 1)
        self._run_to_end([[number + 1] * PAGE_TOKENS for number in range(self.max_num_seqs)], 3)
        self._pages = Pages(len(self._pages))
        self._num_in_memory = 0
        self._model.clear_cache()
        check_limit(private_bytes(), self._num_cache_bytes, self._options)

    def add(
        self,
        sequence_id: int,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        sharing_key: str,
        num_public: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        """Take a sequence in."""
        if not prompt_ids or not 0 <= min(prompt_ids) <= max(prompt_ids) < self._vocabulary_size:
            raise ValueError("a prompt holds at least one id, all of the model's vocabulary")
        if sampling.max_tokens < 1:
            raise ValueError("a completion has at least one token")
        if len(prompt_ids) + sampling.max_tokens > self.card.context_length:
            raise ValueError(f"{len(prompt_ids) + sampling.max_tokens} tokens do not fit the context")
        if any(not 0 <= token < self._vocabulary_size for token in sampling.logit_bias):
            raise ValueError("logit_bias names an id that is not of the model's vocabulary")
        ids = list(prompt_ids)
        chooser = Chooser(sampling, ids, self._eos)
        drafter = Drafter(ids, self._options.max_draft_tokens)
        eos = frozenset() if sampling.ignore_eos else self._eos
        self._waiting.append(
            Member(
                sequence_id,
                ids,
                len(ids),
                sampling.max_tokens,
                sharing_key,
                chooser,
                drafter,
                num_public,
                eos,
                constraint,
            )
        )

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self._waiting = [one for one in self._waiting if one.number != sequence_id]
        sequence = self._running.pop(sequence_id, None)
        if sequence is not None:
            self._pages.give_back(sequence.pages)
            self._pages.release(sequence.num_promised)

    def step(self) -> list[StepOutput]:
        """Let sequences join, then one pass over all that run."""
        self._join_waiting()
        parts = self._plan()
        if not parts:
            return []
        self._take_pages(parts)
        started = self._clock()
        choices = self._model.forward_largest(*lay_out(parts))
        prompts = [part for part in parts if part.sequence.is_prefilling]
        num_prompt_tokens = sum(len(part.ids) for part in prompts)
        position = max((part.sequence.num_held + len(part.ids) for part in prompts), default=0)
        outputs = self._take_in(parts, choices)
        is_decoding = len(prompts) < len(parts)
        self._steering.note(self._clock() - started, num_prompt_tokens, position, is_decoding=is_decoding)
        return outputs

    def rest(self) -> bool:
        """Fault in one more cache page before it is needed; False when enough are.

        On a virtual machine whose host allocates memory on first use, a pass over prompts would wait for each page.
        """
        self._num_in_memory = max(self._num_in_memory, self._pages.num_ever_used)
        num_ready = self._pages.num_free - (len(self._pages) - self._num_in_memory)
        if num_ready >= self.max_num_seqs * num_pages(_READY_TOKENS) or self._num_in_memory == len(self._pages):
            return False
        self._model.touch(self._num_in_memory)
        self._num_in_memory += 1
        return True

    def cache_usage(self) -> float:
        """The share of pages that sequences hold or have reserved, 0 to 1."""
        return self._pages.num_used / len(self._pages)

    def _join_waiting(self) -> None:
        """In order of arrival; a sequence that needs more pages than are free may be overtaken, by a batch at most."""
        blocked: list[Member] = []
        for sequence in list(self._waiting):
            is_full = len(self._running) >= self.max_num_seqs
            if is_full or any(one.num_overtaken >= self.max_num_seqs for one in blocked):
                return
            if self._has_joined(sequence):
                self._waiting.remove(sequence)
                self._running[sequence.number] = sequence
                for one in blocked:
                    one.num_overtaken += 1
            else:
                blocked.append(sequence)

    def _has_joined(self, sequence: Member) -> bool:
        shared = self._pages.share(sequence.prompt_names)
        if not self._pages.promise(sequence.num_promised - len(shared)):
            self._pages.give_back(shared)
            return False
        sequence.take_over(shared)
        return True

    def _catch_up(self, sequence: Member) -> None:
        """Use pages that other sequences have computed since its last step."""
        if sequence.is_at_new_page:
            shared = self._pages.share(sequence.prompt_names[len(sequence.names) :])
            self._pages.release(len(shared))
            sequence.take_over(shared)

    def _begin_page(self, sequence: Member) -> None:
        """Give a prompt its next page; if its public prefix ends in that page and is cached, copy it."""
        if not sequence.is_at_new_page:
            return
        page = self._pages.take()  # first: taking may evict the very page that is looked up next
        if (rest := sequence.next_public_rest) and (found := self._pages.share([rest])):
            # Slots after the prefix may hold another principal's tokens: they are overwritten before they are read.
            self._model.copy_page(found[0], page)
            self._pages.give_back(found)
            sequence.num_shared += sequence.num_public - sequence.num_held
            sequence.num_held = sequence.num_public
        sequence.pages.append(page)

    def _plan(self) -> list[BatchPart]:
        """The batch: a token and its drafts of each sequence that decodes, a chunk of each prompt that gets one."""
        decoding = [one for one in self._running.values() if not one.is_prefilling]
        prompts = [one for one in self._running.values() if one.is_prefilling]
        for one in prompts:
            self._catch_up(one)
        prefilling = fillers(prompts)
        left = 0 if prefilling else _MAX_GUESSING_ROWS - len(decoding)
        parts = []
        for one in decoding:
            guesses = one.propose(min(left, one.num_left - 1, self._options.max_draft_tokens))
            left -= len(guesses)
            parts.append(BatchPart(one, [one.ids[-1], *guesses], 1 + len(guesses)))
        if prefilling:
            chunk = self._steering.chunk(prefilling[0].num_held, is_decoding=bool(decoding))
            if len(prefilling) > 1:
                chunk = min(chunk, _CHUNK_OF_MANY)
            for one, num_tokens in share_out(chunk, prefilling):
                if num_tokens:
                    self._begin_page(one)
                    end = end_of_chunk(one, num_tokens)
                    parts.append(BatchPart(one, one.ids[one.num_held : end], int(end == one.num_prompt)))
        return parts

    def _take_pages(self, parts: Sequence[BatchPart]) -> None:
        for part in parts:
            sequence = part.sequence
            while len(sequence.pages) < num_pages(sequence.num_held + len(part.ids)):
                sequence.pages.append(self._pages.take())

    def _take_in(self, parts: Sequence[BatchPart], choices: Sequence[Output]) -> list[StepOutput]:
        outputs: list[StepOutput] = []
        first = 0
        for part in parts:
            if part.num_choices:
                outputs.append(self._choose(part, choices[first : first + part.num_choices]))
                first += part.num_choices
            else:
                part.sequence.num_held += len(part.ids)
            self._name_pages(part.sequence)
        for output in outputs:
            if output.finish_reason is not None:
                self.cancel(output.sequence_id)
        return outputs

    def _choose(self, part: BatchPart, choices: Sequence[Output]) -> StepOutput:
        """Choose a token after each row, as long as the draft in the next row was right."""
        sequence = part.sequence
        num_cached = sequence.num_shared if sequence.is_prefilling else 0
        guesses = part.ids[len(part.ids) - part.num_choices + 1 :]
        sequence.num_held += len(part.ids) - part.num_choices
        reason: FinishReason | None = None
        chosen: list[Chosen] = []
        for choice, guess in zip(choices, [*guesses, None], strict=True):
            try:
                chosen.append(sequence.chooser.choose(choice))
            except NotFinite:
                reason = "error"
                break
            sequence.append(chosen[-1].token)
            sequence.num_held += 1
            reason = sequence.end
            if reason is not None or chosen[-1].token != guess:
                break
        sequence.drafter.learn(len(guesses), len(chosen) - 1)
        return output_of(sequence, chosen, reason, num_cached)

    def _name_pages(self, sequence: Member) -> None:
        if sequence.public_rest and sequence.num_held >= sequence.num_public:
            self._pages.name(sequence.pages[sequence.num_public // PAGE_TOKENS], sequence.public_rest)
        while len(sequence.names) < sequence.num_held // PAGE_TOKENS:
            page = sequence.pages[len(sequence.names)]
            self._pages.name(page, sequence.name_next_page())

    def _run_to_end(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        for number, prompt in enumerate(prompts):
            self.add(-1 - number, prompt, Sampling(max_tokens=max_tokens, temperature=0), "")
        while self._running or self._waiting:
            if any(output.finish_reason == "error" for output in self.step()):
                raise OperatorError(f"The model cannot be served: {NOT_FINITE}. Fetch or convert it again.")
