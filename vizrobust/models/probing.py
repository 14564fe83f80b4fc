"""What a network does with a few images: its modules' shapes and attention heads, and whether it answers for each image alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.models.forward import LOGITS, Hook, evaluating, first_tensor, modules
from vizrobust.rng import generator_states, same_states, seeded, undisturbed

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


def heads_of(module: nn.Module) -> Hook | None:
    """The hook of a module's heads, or None where it is no attention that can be read.

    The hook hands out the length (L2 norm) of each head's vector, (N, T, heads), in place of T any axes. Read are
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


Shape = tuple[int, int, int]
HEADS = ":heads"
# How much larger the second image is. The two numbers differ, so that a map's height and width grow differently.
LARGER = (32, 64)


@dataclass(frozen=True)
class ShapeTrace:
    """A tensor's shape and, for two images and three axes, the rows along each axis that are the same for both images."""

    shape: tuple[int, ...]
    still: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModuleRecord:
    """What a module was seen to do: for two images, then for one, which was `larger` where the network takes that.

    `output` is None where the module hands on no tensor; `problem` says what it was. `module` is None for the
    network's own output and for the heads of an attention, whose `kind` is ``heads``.
    """

    name: str
    kind: str
    module: nn.Module | None
    output: ShapeTrace | None
    given: ShapeTrace | None = None
    problem: str = ""
    single: tuple[int, ...] | None = None
    larger: bool = False


class _Enough(Exception):
    """All modules asked for have run."""


def probe(net: nn.Module, shape: Shape, names: Sequence[str] | None = None) -> list[ModuleRecord]:
    """Every module that runs for images of `shape` (C, H, W) in the order of its first end, last the output as `logits`.

    With `names`, only up to where all of them have run. Two or three short forward passes without gradients; raises
    what the network raises for images of this shape.
    """
    c, h, w = shape
    weight = next(iter(net.parameters()), torch.zeros(()))

    def images(count: int, height: int, width: int) -> Tensor:
        # Noise of a generator of our own: what is the same for two such images does not depend on the image.
        drawn = torch.rand(count, c, height, width, generator=torch.Generator().manual_seed(0))
        return drawn.to(weight.device, weight.dtype)

    with evaluating(net), torch.no_grad(), undisturbed(weight.device):
        seen, failed = _run(net, images(2, h, w), names)
        if failed is not None:
            raise failed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            larger, failed = _run(net, images(1, h + LARGER[0], w + LARGER[1]), names)
        # A network of one size only still says which axis counts the images.
        same = {} if failed is None else _run(net, images(1, h, w), names)[0]
    return [_joined(item, larger.get(name), same.get(name)) for name, item in seen.items()]


def _joined(item: ModuleRecord, larger: ModuleRecord | None, same: ModuleRecord | None) -> ModuleRecord:
    other = larger or same
    if other is None or other.output is None:
        return item
    return ModuleRecord(
        item.name, item.kind, item.module, item.output, item.given, item.problem, other.output.shape, larger is not None
    )


def _run(net: nn.Module, x: Tensor, names: Sequence[str] | None) -> tuple[dict[str, ModuleRecord], Exception | None]:
    seen: dict[str, ModuleRecord] = {}
    heads: dict[str, ShapeTrace] = {}
    missing = None if names is None else set(names)

    def note(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if name in seen:
            return
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        seen[name] = _seen(name, type(module).__name__, module, output, given)
        if name in heads:
            seen[name + HEADS] = ModuleRecord(name + HEADS, "heads", None, heads[name])
        if missing is not None:
            missing.discard(name)
            if not missing:
                raise _Enough

    def note_heads(name: str, lengths: Tensor) -> None:
        heads.setdefault(name, ShapeTrace(tuple(lengths.shape)))

    handles = []
    failed: Exception | None = None
    try:
        for name, module in modules(net).items():
            if isinstance(module, torch.jit.ScriptModule):  # it can have no hooks
                continue
            handles.append(
                module.register_forward_hook(
                    lambda m, args, kwargs, output, name=name: note(name, m, args, kwargs, output), with_kwargs=True
                )
            )
            hook = heads_of(module)
            if hook is not None:
                handles.append(hook(lambda lengths, name=name: note_heads(name, lengths)))  # type: ignore[misc]
        output = net(x)
        seen[LOGITS] = _seen(LOGITS, "output", None, output, None)
    except _Enough:
        pass
    except Exception as error:
        failed = error
    finally:
        for handle in handles:
            handle.remove()
    return seen, failed


def _seen(name: str, kind: str, module: nn.Module | None, output: Any, given: Tensor | None) -> ModuleRecord:
    try:
        tensor = first_tensor(output)
    except ValueError:
        return ModuleRecord(name, kind, module, None, problem=f"hands on {type(output).__name__}, not a tensor")
    return ModuleRecord(name, kind, module, _trace(tensor), None if given is None else _trace(given))


def _trace(tensor: Tensor) -> ShapeTrace:
    shape = tuple(tensor.shape)
    images = next((axis for axis in (0, 1) if len(shape) == 3 and shape[axis] == 2), None)
    if images is None:
        return ShapeTrace(shape)
    same = tensor.select(images, 0) == tensor.select(images, 1)
    rest = [axis for axis in range(3) if axis != images]
    still = {axis: same.all(1 - place).nonzero().flatten().tolist() for place, axis in enumerate(rest)}
    return ShapeTrace(shape, {axis: tuple(rows) for axis, rows in still.items()})


BESIDE = "its outputs for an image depend on the other images of the batch (BatchNorm of batch statistics?)"
BEFORE = (
    "its outputs change from pass to pass though it draws from no global generator (it keeps a state, or has a generator of "
    "its own), so results depend on what was computed before"
)
# As shares of the largest output. A pass that is repeated rounds alike, one of another batch size does not.
REPEATED, ROUNDED = 1e-4, 1e-2


def dependence(net: nn.Module, shape: Shape, what: str) -> tuple[bool, str]:
    """Whether a network must get one image at a time, and a sentence about what its outputs depend on; or False and "".

    A network that draws from torch's, numpy's or Python's generator is stochastic, which is told elsewhere, and one that
    fails on such images is left as it is. Raises ``ValueError`` where it takes several images but not one.

    >>> from vizrobust.models.forward import Normalized
    >>> class Relative(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x.flatten(1) - x.flatten(1).mean(0)
    >>> dependence(Normalized(Relative(), [0.0], [1.0]), (1, 2, 3), "it")[0]
    True
    """
    weight = next(iter(net.parameters()), torch.zeros(()))
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)).to(weight.device)
    with evaluating(net), torch.no_grad(), seeded(0, weight.device):
        before = generator_states(weight.device)
        try:
            first, again = net(x), net(x)
        except Exception:  # whatever a network does with images that are not for it
            return False, ""
        if not same_states(before, generator_states(weight.device)):
            return False, ""
        if not _same(first, again, REPEATED):
            return False, BEFORE
        try:
            alone = net(x[1:2])
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"{what} takes no single image ({reason}), so its outputs for an image depend on the others of the batch; give "
                "its BatchNorm running statistics"
            ) from error
    return (False, "") if _same(first[1:2], alone, ROUNDED) else (True, BESIDE)


def _same(one: Tensor, other: Tensor, share: float) -> bool:
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return False
    one, other = (x.double().nan_to_num(0, 0, 0) for x in (one, other))
    return bool((one - other).abs().max() <= share * one.abs().max())
