"""What each head of an attention module hands on, before the output projection mixes the heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.models.forward import Tap

# The order of nn.MultiheadAttention's arguments where they are given by position.
ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")


def attended(attention: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> Tensor:
    """The attention-weighted values of all heads side by side, (N, T, heads * d), for the module's own arguments.

    ``attended(m, q, k, v) @ m.out_proj.weight.T + m.out_proj.bias`` is the module's output: torch's own routine runs
    with the identity in place of the output projection.
    """
    given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
    query, key, value = (given[name] for name in ARGUMENTS[:3])
    if attention.batch_first:
        query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    width = attention.embed_dim
    separate = attention.in_proj_weight is None
    output, _ = F.multi_head_attention_forward(
        query, key, value, width, attention.num_heads,
        attention.in_proj_weight, attention.in_proj_bias, attention.bias_k, attention.bias_v, attention.add_zero_attn,
        0.0, torch.eye(width, dtype=query.dtype, device=query.device), None, training=False, need_weights=False,
        key_padding_mask=given.get("key_padding_mask"), attn_mask=given.get("attn_mask"), use_separate_proj_weight=separate,
        q_proj_weight=attention.q_proj_weight, k_proj_weight=attention.k_proj_weight, v_proj_weight=attention.v_proj_weight,
    )  # fmt: skip
    return output.transpose(0, 1)


def heads_of(module: nn.Module) -> Tap | None:
    """The tap of a module's heads, or None where it is no attention that can be read.

    The tap hands out the length (L2 norm) of each head's vector, (N, T, heads), in place of T any axes. Read are
    ``nn.MultiheadAttention``, and modules with `num_heads` and a linear `proj` whose input is the heads side by
    side (Concat(head_1, …, head_h) W^O of Vaswani et al. 2017), as in timm.
    """
    if isinstance(module, nn.MultiheadAttention):
        attention, count = module, module.num_heads
        return lambda keep: attention.register_forward_pre_hook(
            lambda _module, args, kwargs: keep(_lengths(attended(attention, *args, **kwargs), count)), with_kwargs=True
        )
    heads, proj = getattr(module, "num_heads", None), getattr(module, "proj", None)
    if not isinstance(heads, int) or not isinstance(proj, nn.Linear) or heads < 1 or proj.in_features % heads:
        return None
    return lambda keep: proj.register_forward_pre_hook(lambda _module, args: keep(_lengths(args[0], heads)))


def _lengths(side_by_side: Tensor, heads: int) -> Tensor:
    return torch.linalg.vector_norm(side_by_side.reshape(*side_by_side.shape[:-1], heads, -1), dim=-1)
