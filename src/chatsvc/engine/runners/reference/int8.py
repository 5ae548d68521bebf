"""int8 linear layers for torch on a CPU: a scale for each output channel and one for each token.

One scale for each *token* matters: torch's own dynamic quantisation has one for the whole batch, so who shares the
batch would change the output. Sums are integers, hence exact. Knows no model's architecture.
"""

from __future__ import annotations

import torch
from torch import nn

_MAX = 127.0
_LEAST_SCALE = 1e-8


class Int8Linear(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """A drop-in for :class:`torch.nn.Linear` in inference; takes (rows, inputs) or (…, rows, inputs)."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=_LEAST_SCALE) / _MAX
        self.register_buffer("weight", torch.round(weight / scale[:, None]).to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the linear layer would give, to within rounding."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        row_scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=_LEAST_SCALE) / _MAX
        quantised = torch.round(rows / row_scale).to(torch.int8)
        result = torch._int_mm(quantised, self.weight.t()).float() * row_scale * self.scale  # noqa: SLF001 - torch's name
        if self.bias is not None:
            result = result + self.bias
        return result.view(*inputs.shape[:-1], -1)


def quantise_linears(model: nn.Module) -> None:
    """Replace every linear layer in place, the head too; embeddings stay as they are."""
    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            setattr(model, name, Int8Linear(child))
        else:
            quantise_linears(child)
