"""The prefill chunk: how many prompt tokens the next step may take without stalling the sequences that decode.

It learns from every step what a prompt token costs at each position (attention makes later ones more expensive), with
and without decoding sequences (with them some libraries take half as long again), and what a step costs without any.
Pure; knows no library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chatsvc.engine.runners.openvino.prefixes import BLOCK_TOKENS

_BUCKET_TOKENS = 512
_NEWEST_SHARE = 0.5
# Aim below the target, because a step's time is only estimated.
_SAFETY = 0.8
# The cost of a prompt token beside decoding sequences, relative to alone, until it has been measured.
_COMPANY = 1.5


@dataclass(slots=True)
class Steering:
    """Costs as measured, and the chunk that follows from them.

    Args:
        max_chunk: most prompt tokens in a step, however quick.
        max_gap_s: how long a running sequence may wait for its next token.
        decode_s: what a step without prompt tokens takes.
    """

    max_chunk: int
    max_gap_s: float
    decode_s: float = 0.02
    _alone_s: dict[int, float] = field(default_factory=dict)
    _beside_s: dict[int, float] = field(default_factory=dict)

    def note(self, step_s: float, num_prompt_tokens: int, position: int, *, is_decoding: bool) -> None:
        """Learn from a step that took ``num_prompt_tokens`` of prompts, the last ending at ``position``."""
        if num_prompt_tokens == 0:
            self.decode_s += _NEWEST_SHARE * (step_s - self.decode_s)
        elif num_prompt_tokens >= BLOCK_TOKENS:  # with fewer, the step's fixed cost dominates
            cost_s = max(step_s - (self.decode_s if is_decoding else 0.0), 0.1 * step_s) / num_prompt_tokens
            bucket = position // _BUCKET_TOKENS
            known = self._beside_s if is_decoding else self._alone_s
            before_s = known.get(bucket, cost_s)
            known[bucket] = before_s + _NEWEST_SHARE * (cost_s - before_s)

    def token_s(self, position: int, *, is_decoding: bool) -> float:
        """The cost of a prompt token at ``position``, from the nearest measured position."""
        bucket = position // _BUCKET_TOKENS
        alone_s = _nearest(self._alone_s, bucket) or 0.001
        if not is_decoding:
            return alone_s
        if bucket in self._beside_s:
            return self._beside_s[bucket]
        return max(_nearest(self._beside_s, bucket), alone_s) if self._beside_s else alone_s * _COMPANY

    def chunk(self, position: int, *, is_decoding: bool) -> int:
        """Prompt tokens for the next step, a multiple of the block; ``max_chunk`` when no sequence decodes."""
        if not is_decoding:
            return self.max_chunk
        tokens = int(_SAFETY * (self.max_gap_s - self.decode_s) / self.token_s(position, is_decoding=True))
        return min(max(tokens // BLOCK_TOKENS, 1) * BLOCK_TOKENS, self.max_chunk)

    def prefill_s(self, start: int, end: int, *, is_decoding: bool) -> float:
        """How long the prompt tokens from ``start`` to ``end`` would take now, in chunks as above."""
        total_s = 0.0
        decode_s = self.decode_s if is_decoding else 0.0
        while start < end:
            num_tokens = min(self.chunk(start, is_decoding=is_decoding), end - start)
            total_s += num_tokens * self.token_s(start, is_decoding=is_decoding) + decode_s
            start += num_tokens
        return total_s


def _nearest(costs_s: Mapping[int, float], bucket: int) -> float:
    return costs_s[min(costs_s, key=lambda known: (abs(known - bucket), -known))] if costs_s else 0.0
