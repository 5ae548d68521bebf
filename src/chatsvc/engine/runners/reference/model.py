"""A decoder's forward pass for several sequences at once, independent of the batch. Knows no sampling.

A sequence's results are the same to the last bit, whatever else is in the batch:

- A prompt's chunk is computed alone, so its matrices have the same shape every time.
- A decode step always has the same number of rows; empty ones are padding. A row of a matrix product depends on the
  matrix' shape, not on the other rows.
- Attention is computed for each sequence by itself, over its own cache.

Shapes below: R rows (tokens), H hidden size, D head size, S tokens in a sequence's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache

from chatsvc.models.formats.architectures import BY_MODEL_TYPE

_FIRST_CAPACITY = 256
# Matrix products divide rows among threads in blocks; a block that is not full is computed in another order.
_ROW_BLOCK = 16


class Model(Protocol):
    """A decoder; a cache belongs to one sequence and grows with every call."""

    def new_cache(self) -> Any:
        """An empty cache."""

    def prefill(self, ids: Sequence[int], cache: Any) -> torch.Tensor:
        """Process prompt tokens; returns the logits after the last one, shape (vocabulary,)."""

    def decode(self, ids: Sequence[int], caches: Sequence[Any]) -> torch.Tensor:
        """Process one token of each sequence; returns the logits after each, shape (sequences, vocabulary)."""


def model_for(model: Any, *, max_num_seqs: int) -> Model:
    """The batched forward pass where the architecture is known, else transformers' own, one sequence at a time."""
    if is_batchable(model.config):
        return BatchedModel(model, max_num_seqs=max_num_seqs)
    return SequentialModel(model)


def is_batchable(config: Any) -> bool:
    """Whether :class:`BatchedModel` computes what the architecture does."""
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    return (
        config.model_type in BY_MODEL_TYPE
        and window >= config.max_position_embeddings
        # The other kinds change their frequencies with the length of a sequence, so sequences cannot share a pass.
        and rope.get("rope_type", "default") in ("default", "linear", "llama3", "yarn")
    )


def depends_on_length(config: Any) -> bool:
    """Whether long prompts have other frequencies than short ones (longrope: Phi-3, MiniCPM).

    A prompt is processed in chunks, and the first ones would be cached with the frequencies of short prompts.
    """
    longest = getattr(config, "max_position_embeddings", 0)
    return any(
        rope.get("rope_type") == "longrope" and (rope.get("original_max_position_embeddings") or longest) < longest
        for rope in _ropes_of(config)
    )


def _ropes_of(config: Any) -> list[dict[str, Any]]:
    """The parameters of the rotary position embedding; some models have others for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [parameters, *(each for each in parameters.values() if isinstance(each, dict))]


class SequentialModel:
    """transformers' forward pass: any architecture, one sequence after the other."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def new_cache(self) -> DynamicCache:
        """An empty cache."""
        return DynamicCache()

    def prefill(self, ids: Sequence[int], cache: DynamicCache) -> torch.Tensor:
        """See :class:`Model`."""
        inputs = torch.tensor([ids])
        output = self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = output.logits[0, -1].float()
        return logits

    def decode(self, ids: Sequence[int], caches: Sequence[DynamicCache]) -> torch.Tensor:
        """See :class:`Model`."""
        return torch.stack([self.prefill([token], cache) for token, cache in zip(ids, caches, strict=True)])


class KvCache:
    """Keys and values of one sequence, a tensor of shape (2, KV heads, capacity, D) for each layer."""

    def __init__(self, num_layers: int, num_kv_heads: int, head_size: int) -> None:
        self.length = 0
        self._layers = [torch.empty(2, num_kv_heads, _FIRST_CAPACITY, head_size) for _ in range(num_layers)]

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens after ``length``; returns the layer's keys and values, each (1, KV heads, S, D)."""
        end = self.length + keys.shape[1]
        held = self._layers[layer]
        if end > held.shape[2]:
            larger = torch.empty(2, held.shape[1], max(end, 2 * held.shape[2]), held.shape[3])
            larger[:, :, : self.length] = held[:, :, : self.length]
            self._layers[layer] = held = larger
        held[0, :, self.length : end] = keys
        held[1, :, self.length : end] = values
        return held[0:1, :, :end], held[1:2, :, :end]


@dataclass(frozen=True, slots=True)
class _Span:
    """The rows of one sequence."""

    cache: KvCache
    start: int
    end: int


class BatchedModel:
    """The forward pass of the described architectures over the modules of a transformers model."""

    def __init__(self, model: Any, *, max_num_seqs: int) -> None:
        config = model.config
        self._decoder = model.model
        self._head: nn.Module = model.lm_head
        self._num_heads = int(config.num_attention_heads)
        self._num_kv_heads = int(config.num_key_value_heads)
        self._head_size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self._num_rows = -(-max_num_seqs // _ROW_BLOCK) * _ROW_BLOCK

    def new_cache(self) -> KvCache:
        """An empty cache."""
        return KvCache(len(self._decoder.layers), self._num_kv_heads, self._head_size)

    def prefill(self, ids: Sequence[int], cache: KvCache) -> torch.Tensor:
        """See :class:`Model`."""
        hidden = self._forward(list(ids), [_Span(cache, 0, len(ids))])
        logits: torch.Tensor = self._head(hidden[-1:])[0]
        return logits

    def decode(self, ids: Sequence[int], caches: Sequence[KvCache]) -> torch.Tensor:
        """See :class:`Model`."""
        padded = [*ids, *[0] * (self._num_rows - len(ids))]
        hidden = self._forward(padded, [_Span(cache, row, row + 1) for row, cache in enumerate(caches)])
        logits: torch.Tensor = self._head(hidden)[: len(ids)]
        return logits

    def _forward(self, ids: list[int], spans: Sequence[_Span]) -> torch.Tensor:
        positions = torch.zeros(len(ids), dtype=torch.long)
        for span in spans:
            positions[span.start : span.end] = torch.arange(span.end - span.start) + span.cache.length
        hidden = self._decoder.embed_tokens(torch.tensor(ids))  # (R, H)
        rotation = self._decoder.rotary_emb(hidden[None], positions[None])  # two of (1, R, D)
        for number, layer in enumerate(self._decoder.layers):
            attended = self._attend(layer.self_attn, number, layer.input_layernorm(hidden), rotation, spans)
            hidden = hidden + attended
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        for span in spans:
            span.cache.length += span.end - span.start
        normed: torch.Tensor = self._decoder.norm(hidden)
        return normed

    def _attend(
        self,
        attention: Any,
        layer: int,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        spans: Sequence[_Span],
    ) -> torch.Tensor:
        num_rows = hidden.shape[0]
        queries = attention.q_proj(hidden).view(num_rows, self._num_heads, self._head_size)
        keys = attention.k_proj(hidden).view(num_rows, self._num_kv_heads, self._head_size)
        values = attention.v_proj(hidden).view(num_rows, self._num_kv_heads, self._head_size)
        if hasattr(attention, "q_norm"):  # Qwen3
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        if getattr(attention, "use_rope", True):  # SmolLM3 has layers without
            queries, keys = _rotated(queries, rotation), _rotated(keys, rotation)
        attended = torch.zeros_like(queries)
        for span in spans:
            rows = slice(span.start, span.end)
            held = span.cache.append(layer, keys[rows].transpose(0, 1), values[rows].transpose(0, 1))
            attended[rows] = _attention(queries[rows], *held)
        projected: torch.Tensor = attention.o_proj(attended.view(num_rows, -1))
        return projected


def _rotated(vectors: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary position embedding: pairs are the first and second half of a head. ``vectors`` is (R, heads, D)."""
    cosine, sine = (part[0, :, None, :] for part in rotation)  # (R, 1, D)
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosine + torch.cat((-second, first), dim=-1) * sine


def _attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of one sequence's new rows (T, heads, D) over its whole cache; returns the same shape."""
    num_new, num_all = queries.shape[0], keys.shape[2]
    mask = None
    if num_new > 1:
        mask = torch.ones(num_new, num_all, dtype=torch.bool).tril(num_all - num_new)
    result = functional.scaled_dot_product_attention(
        queries.transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True
    )
    return result[0].transpose(0, 1)
