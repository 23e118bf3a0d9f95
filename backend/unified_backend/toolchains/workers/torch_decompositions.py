"""Operators of PyTorch's that no exporter writes, in terms of those that they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["decompositions"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Operator -> what computes the same; made when PyTorch is there."""
    import torch

    return {torch.ops.aten._transformer_encoder_layer_fwd.default: _encoder_layer}


def _encoder_layer(
    source: Any,
    width: int,
    heads: int,
    in_weight: Any,
    in_bias: Any,
    out_weight: Any,
    out_bias: Any,
    gelu: bool,
    norm_first: bool,
    epsilon: float,
    norm_weight_1: Any,
    norm_bias_1: Any,
    norm_weight_2: Any,
    norm_bias_2: Any,
    linear_weight_1: Any,
    linear_bias_1: Any,
    linear_weight_2: Any,
    linear_bias_2: Any,
    mask: Any = None,
    mask_type: int | None = None,
) -> Any:
    """The fused layer that torch.nn.TransformerEncoderLayer runs when it does not train."""
    from torch.nn import functional

    if mask is not None:
        raise NotImplementedError("a fused encoder layer with a mask")

    def attended(x: Any) -> Any:
        batch, length, _ = x.shape
        parts = functional.linear(x, in_weight, in_bias).view(batch, length, 3, heads, width // heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return functional.linear(mixed.transpose(1, 2).reshape(batch, length, width), out_weight, out_bias)

    def fed_forward(x: Any) -> Any:
        hidden = functional.linear(x, linear_weight_1, linear_bias_1)
        hidden = functional.gelu(hidden) if gelu else functional.relu(hidden)
        return functional.linear(hidden, linear_weight_2, linear_bias_2)

    def first(x: Any) -> Any:
        return functional.layer_norm(x, (width,), norm_weight_1, norm_bias_1, epsilon)

    def second(x: Any) -> Any:
        return functional.layer_norm(x, (width,), norm_weight_2, norm_bias_2, epsilon)

    if norm_first:
        x = source + attended(first(source))
        return x + fed_forward(second(x))
    x = first(source + attended(source))
    return second(x + fed_forward(x))
