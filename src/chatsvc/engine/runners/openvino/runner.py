"""The runner for other processors than the native one's: OpenVINO GenAI over GGUF files and converted directories.

The library processes prompts in chunks of one fixed size and shares its prefix cache between all principals. We need
neither, so a prompt is submitted as growing prefixes: each is a request for one token, and the next finds its blocks in
the cache:

1. Blocks that the principal has computed before, or that are the public prompt prefix, cost nothing: the prefill
   starts after them.
2. Blocks that only other principals have computed are cached too; a quick answer would reveal that. So the sequence
waits as
   long as computing them would take; then they count as its own.
3. The rest is computed in chunks sized by the duration of the last steps, so that running sequences do not stall.
4. The last chunk is the request itself.
5. A finished sequence leaves a last block that is not full. The library (2026.4.1) gives it to every prompt that
   continues where it ended, and prompts that have it at the same time overwrite each other. So one has it at a time.

``step()`` holds the GIL, which is why the engine is a process of its own with one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from chatsvc.engine.engine_side.memory import drop_file_mapping, private_bytes
from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import RunnerOptions, StepOutput
from chatsvc.engine.runners.grammars import Constraint
from chatsvc.engine.runners.openvino.pipeline import UNSUPPORTED, Pipeline, Request
from chatsvc.engine.runners.openvino.prefixes import BLOCK_TOKENS, PrefixIndex, Tail, block_names
from chatsvc.engine.runners.sizing import check_limit, num_kv_blocks, shape_of, weights_bytes
from chatsvc.engine.runners.steering import Steering
from chatsvc.models.card import ModelCard

_ONE_TOKEN = Sampling(max_tokens=1, temperature=0)
_WARM_UP_PROMPT_TOKENS = 24
_MAX_SLEEP_S = 0.005


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence and how far its prompt is: ``num_done`` tokens are in the cache, ``target`` when the step is over."""

    number: int
    ids: list[int]
    configuration: Any
    key: str
    num_prompt: int
    names: list[bytes]
    num_public: int
    num_done: int = 0
    target: int = 0
    num_own: int = 0
    wait_until: float = 0.0
    chunk: Request | None = None
    request: Request | None = None
    tail: Tail | None = None


class OpenVinoRunner:
    """A :class:`chatsvc.engine.runners.base.Runner`.

    Args:
        path: a ``.gguf`` file, or a directory with ``openvino_model.xml``.
        card: what the model is.
        options: sizes.
        clock: monotonic seconds.

    Raises:
        OperatorError: OpenVINO cannot load it.
    """

    def __init__(
        self, path: Path, card: ModelCard, options: RunnerOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.card = msgspec.structs.replace(card, runner="openvino", unsupported=UNSUPPORTED)
        self.max_num_seqs = options.max_num_seqs
        self._path = path
        self._eos = frozenset(card.eos_token_ids)
        self._clock = clock
        self._steering = Steering(max_chunk=options.prefill_chunk_tokens, max_gap_s=options.max_gap_ms / 1000)
        self._options = options
        shape = shape_of(path)
        num_blocks = num_kv_blocks(shape, weights_bytes(path), card.context_length, options)
        self._num_cache_bytes = num_blocks * shape.block_bytes
        self._index = PrefixIndex(num_blocks)
        self._sequences: dict[int, _Sequence] = {}
        self._refused: list[StepOutput] = []
        self._pipeline = Pipeline(path, num_blocks, options)
        self._one_token = self._pipeline.configuration(_ONE_TOKEN)

    def warm_up(self) -> None:
        """Run a full prefill chunk twice (the second tells its cost), then every batch size from the largest to one."""
        chunk = self._steering.max_chunk
        for first in (1, 2):
            started = self._clock()
            self._run_to_end([([first, *range(1, chunk)], _ONE_TOKEN)])
        self._steering.note(self._clock() - started, chunk, 0, is_decoding=False)
        self._run_to_end(
            [
                ([number + 1] * _WARM_UP_PROMPT_TOKENS, Sampling(max_tokens=number + 2, temperature=0))
                for number in range(self.max_num_seqs)
            ]
        )
        drop_file_mapping(self._path)  # the weights were repacked in the first inference
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
        """Add a sequence."""
        if not prompt_ids:
            raise ValueError("a prompt needs at least one id")
        if constraint is not None:
            raise ValueError("this runner supports no grammar")
        ids = list(prompt_ids)
        configuration = self._pipeline.configuration(sampling, self._eos)
        self._sequences[sequence_id] = _Sequence(
            sequence_id, ids, configuration, sharing_key, len(ids), block_names(ids), num_public
        )

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return
        for request in (sequence.chunk, sequence.request):
            if request is not None:
                request.cancel()
        self._leave_tail(sequence, len(sequence.ids))
        self._leave_tail(sequence, len(sequence.ids) - 1)  # the last token may or may not have been processed
        if not self._sequences:
            self._pipeline.step()  # frees its cache; with others running the next step does that

    def step(self) -> list[StepOutput]:
        """Submit the next chunks, do one step of the pipeline, and read the results of each sequence."""
        is_decoding = any(sequence.request is not None for sequence in self._sequences.values())
        num_prompt_tokens, position = self._submit_chunks(is_decoding=is_decoding)
        outputs, self._refused = self._refused, []
        busy = [one for one in self._sequences.values() if one.request is not None or one.chunk is not None]
        if busy:
            started = self._clock()
            self._pipeline.step()
            self._steering.note(self._clock() - started, num_prompt_tokens, position, is_decoding=is_decoding)
            outputs += [output for sequence in busy if (output := self._read(sequence)) is not None]
        else:
            self._sleep()
        for output in outputs:
            if output.finish_reason is not None:
                sequence = self._sequences.pop(output.sequence_id)
                self._leave_tail(sequence, len(sequence.ids) - 1)
        return outputs

    def rest(self) -> bool:
        """There is nothing to do in advance."""
        return False

    def cache_usage(self) -> float:
        """The pipeline's own figure."""
        return self._pipeline.cache_usage()

    def _submit_chunks(self, *, is_decoding: bool) -> tuple[int, int]:
        """Give the step's budget to the sequences in prefill, in order; returns the tokens' number and end position."""
        num_tokens = position = 0
        for sequence in self._sequences.values():
            if sequence.request is not None or sequence.chunk is not None:
                continue
            self._skip_cached(sequence, is_decoding=is_decoding)
            if self._clock() < sequence.wait_until:
                continue
            left = self._steering.chunk(sequence.num_done, is_decoding=is_decoding) - num_tokens
            if left <= 0:
                break
            if not self._takes_tail(sequence):
                continue
            try:
                taken = self._submit_chunk(sequence, left)
            except RuntimeError as error:  # the library's own class, for any fault of a request
                self._refused.append(StepOutput(sequence.number, (), 0, "error", detail=str(error)[:200]))
                continue
            num_tokens += taken
            position = max(position, sequence.target if taken else 0)
        return num_tokens, position

    def _submit_chunk(self, sequence: _Sequence, max_tokens: int) -> int:
        """Submit the next chunk of a prompt, or, as its last part, the request itself. Returns its tokens."""
        missing = sequence.num_prompt - sequence.num_done
        if missing <= max_tokens:
            sequence.target = sequence.num_prompt
            sequence.request = self._pipeline.submit(sequence.ids, sequence.configuration)
            return missing
        taken = max_tokens // BLOCK_TOKENS * BLOCK_TOKENS
        if taken:
            sequence.target = sequence.num_done + taken
            sequence.chunk = self._pipeline.submit(sequence.ids[: sequence.target], self._one_token)
        return taken

    def _skip_cached(self, sequence: _Sequence, *, is_decoding: bool) -> None:
        """Steps 1 and 2: skip blocks that are cached, and wait for those that only other principals have computed."""
        start = sequence.num_done
        num_foreign = 0
        last_block = (sequence.num_prompt - 1) // BLOCK_TOKENS  # one token at least is always computed
        for name in sequence.names[start // BLOCK_TOKENS : last_block]:
            if not self._index.is_cached(name):
                break
            is_public = sequence.num_done + BLOCK_TOKENS <= sequence.num_public
            is_own = is_public or self._index.is_own(name, sequence.key)
            num_foreign += not is_own
            sequence.num_own += is_own
            sequence.num_done += BLOCK_TOKENS
        if num_foreign:
            end = sequence.num_done
            wait_s = self._steering.prefill_s(end - num_foreign * BLOCK_TOKENS, end, is_decoding=is_decoding)
            sequence.wait_until = max(sequence.wait_until, self._clock()) + wait_s
        self._index.add(sequence.names[: sequence.num_done // BLOCK_TOKENS], sequence.key)

    def _takes_tail(self, sequence: _Sequence) -> bool:
        """Step 5: whether the prompt may be submitted now; if it continues a tail, it then has that tail alone."""
        start = sequence.num_done
        before = sequence.names[start // BLOCK_TOKENS - 1] if start else b""
        tail = self._index.tail(before, sequence.ids[start : sequence.num_prompt])
        if tail is not None and any(one.tail == tail for one in self._sequences.values() if one is not sequence):
            return False
        sequence.tail = tail or sequence.tail
        return True

    def _leave_tail(self, sequence: _Sequence, num_held: int) -> None:
        """Record that the sequence ended with ``num_held`` tokens in the cache."""
        start = num_held // BLOCK_TOKENS * BLOCK_TOKENS
        if sequence.request is not None and start < num_held:
            names = block_names(sequence.ids[:start])
            self._index.add_tail(names[-1] if names else b"", sequence.ids[start:num_held])

    def _read(self, sequence: _Sequence) -> StepOutput | None:
        if sequence.request is None:
            return self._read_chunk(sequence)
        ids, reason = sequence.request.read()
        if reason == "error":
            return StepOutput(sequence.number, (), 0, "error", detail="the KV cache is too small for this sequence")
        if not ids and reason is None:
            return None
        self._learn(sequence, ids)
        has_end = bool(ids) and ids[-1] in self._eos and not sequence.configuration.ignore_eos
        visible = ids[:-1] if has_end else ids
        return StepOutput(sequence.number, visible, len(ids), reason, sequence.num_own * BLOCK_TOKENS)

    def _read_chunk(self, sequence: _Sequence) -> StepOutput | None:
        assert sequence.chunk is not None
        _, reason = sequence.chunk.read()
        if reason == "error":
            return StepOutput(sequence.number, (), 0, "error", detail="the KV cache is too small for this prompt")
        if reason is not None:
            sequence.chunk = None
            sequence.num_done = sequence.target
            self._index.add(sequence.names[: sequence.num_done // BLOCK_TOKENS], sequence.key)
        return None

    def _learn(self, sequence: _Sequence, new_ids: Sequence[int]) -> None:
        """The blocks of what was generated are in the cache too: the next turn of the conversation finds them."""
        if sequence.num_done < sequence.num_prompt:
            sequence.num_done = sequence.num_prompt
            self._index.add(sequence.names, sequence.key)
        sequence.ids.extend(new_ids)
        num_named = len(sequence.names)
        names = block_names(sequence.ids[num_named * BLOCK_TOKENS : -1], sequence.names[-1] if num_named else b"")
        if names:
            sequence.names.extend(names)
            self._index.add(names, sequence.key)

    def _sleep(self) -> None:
        """All sequences wait for step 2."""
        waits = [sequence.wait_until - self._clock() for sequence in self._sequences.values()]
        if waits:
            time.sleep(max(0.0, min(_MAX_SLEEP_S, *waits)))

    def _run_to_end(self, work: Sequence[tuple[Sequence[int], Sampling]]) -> None:
        """Run requests through the pipeline directly, without steering and index."""
        requests = [self._pipeline.submit(ids, self._pipeline.configuration(sampling)) for ids, sampling in work]
        while requests:
            self._pipeline.step()
            requests = [request for request in requests if request.read()[1] is None]
