"""Faster, equal layers for networks that are not trained any more.

BatchNorm becomes a part of the layer before it, or one affine function. A convolution of few channels with a stride reads blocks
of pixels.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.models.checkpoints import Checkpoint
from vizrobust.models.forward import LOGITS, activations, evaluating, without_normalization
from vizrobust.models.layers import module_of
from vizrobust.rng import seeded, undisturbed

SOURCES = (nn.Conv1d, nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
TOLERANCE = 1e-5  # of the largest output, in float64
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Kernels work on this many channels at a time, so fewer cost as much.
LANES = 16
# The kernel grows to whole blocks; beyond this growth of its area nothing is gained.
GROWTH = 1.5


def folded_net(checkpoint: Checkpoint, layers: Sequence[str] = ()) -> tuple[nn.Module, int]:
    """A new network of the checkpoint with BatchNorm folded where that is safe, and in how many places it was changed.

    Folded is what alone reads the output of a convolution or linear layer, into that layer; any other becomes `Affine`. A
    strided convolution of few channels becomes a `SpaceToDepthConv` where that pays. The outputs and the values of the
    `layers` are those of the plain network up to rounding; other layers before a folded BatchNorm have other values. Where
    nothing can be folded, or where the outcome differs, it is the plain network and 0.

    >>> from vizrobust.models import load_checkpoint
    >>> folded_net(load_checkpoint("imagenette-k4"))[1], folded_net(load_checkpoint("mnist-k8"))[1]
    (9, 1)
    """
    net = checkpoint.net()
    stems = [name for name, module in without_normalization(net).named_modules() if _plain(module) and pays(module)]
    if not stems and not any(isinstance(module, NORMS) for module in net.modules()):
        return net, 0
    shape = checkpoint.info.input_shape
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = [base for name in layers if (base := module_of(name)) != LOGITS]
    with undisturbed(x.device), evaluating(net):
        try:
            exact = copy.deepcopy(net).double()
            pairs = foldable(exact, x, kept)
            before = _values(exact, x, kept)
            _change(exact, pairs, stems)
            after = _values(exact, x, kept)
        except Exception:  # a network that cannot be copied, run in float64 or looked into stays as it is
            return net, 0
    if not all(_same(before[name], after[name]) for name in before):
        return net, 0
    _change(net, pairs, stems)
    return net, len(pairs) + len(stems)


def _change(net: nn.Module, pairs: Sequence[tuple[str, str]], stems: Sequence[str]) -> None:
    for source, norm in pairs:
        fold(net, source, norm)
    body = without_normalization(net)
    for stem in stems:
        _put(body, stem, SpaceToDepthConv.of(body.get_submodule(stem)))


def _put(body: nn.Module, name: str, instead: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(body.get_submodule(parent), own, instead)


class Run(Protocol):
    """A run folder, as far as it says which networks its rows are of."""

    @property
    def folds(self) -> bool: ...


def net_for(run: Run, checkpoint: Checkpoint, layers: Sequence[str] = ()) -> tuple[nn.Module, int]:
    """A new network of the checkpoint as the rows of a run want it, plain or folded, and in how many places it is folded."""
    return folded_net(checkpoint, layers) if run.folds else (checkpoint.net(), 0)


def foldable(net: nn.Module, x: Tensor, layers: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(source, norm) by name: each BatchNorm in evaluation mode, and the convolution or linear layer whose output it alone reads.

    The source is empty where there is none. From one pass of images x. Left out are modules that run twice, that have
    hooks, parametrizations or a `forward` of their own, and sources whose value one of the `layers` is.
    """
    body = without_normalization(net)
    runs: Counter[nn.Module] = Counter()
    made: dict[Any, nn.Module] = {}  # by the node of the output in autograd's graph
    reads: dict[nn.Module, Any] = {}

    def ran(module: nn.Module, _inputs: Any, output: Any) -> None:
        runs[module] += 1
        if not isinstance(module, NORMS):
            made[output.grad_fn] = module

    able = {name: module for name, module in body.named_modules() if _plain(module)}
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: reads.__setitem__(module, inputs[0].grad_fn))
        for module in able.values()
        if isinstance(module, NORMS)
    ]
    handles += [module.register_forward_hook(ran) for module in able.values()]
    try:
        with torch.enable_grad():
            outputs = activations(net, x.clone().requires_grad_(), [*layers, LOGITS])
    finally:
        for handle in handles:
            handle.remove()
    readers = _readers([one.grad_fn for one in outputs.values()])
    named = {module: name for name, module in able.items()}
    found = []
    for norm, node in reads.items():
        source, name = made.get(node), named[norm]
        alone = source is not None and readers[node] == runs[source] == runs[norm] == 1
        first = named[source] if source is not None and alone else ""
        found.append(("" if any(_is_value_of(layer, first, name) for layer in layers) else first, name))
    return found


def _plain(module: nn.Module) -> bool:
    """Whether a module computes what its class says, and a BatchNorm is fixed."""
    kind = next((one for one in (*SOURCES, *NORMS) if isinstance(module, one)), None)
    if kind is None or type(module).forward is not kind.forward or any(getattr(module, hooks) for hooks in HOOKS):
        return False
    if hasattr(module, "parametrizations"):
        return False
    return not isinstance(module, NORMS) or (not module.training and module.running_mean is not None)


def _is_value_of(layer: str, source: str, norm: str) -> bool:
    """Whether a layer's value may be that of the source: it is the source, or a part that ends before the norm."""
    return layer == source or (source.startswith(f"{layer}.") and not norm.startswith(f"{layer}."))


def _readers(ends: Sequence[Any]) -> Counter[Any]:
    """How often each node of autograd's graph is read, by others or as one of the `ends`."""
    found: Counter[Any] = Counter()
    todo = [node for node in ends if node is not None]
    while todo:
        node = todo.pop()
        found[node] += 1
        if found[node] == 1:
            todo += [other for other, _ in node.next_functions if other is not None]
    return found


@torch.no_grad()
def fold(net: nn.Module, source: str, norm: str) -> None:
    """Scale and shift the source's outputs as the norm does, in the network itself; an identity takes the norm's place.

    Without a source the norm becomes `Affine`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    >>> fold(net, "0", "1")
    >>> net[1], net[0].bias is not None
    (Identity(), True)
    """
    body = without_normalization(net)
    second: Any = body.get_submodule(norm)
    mean, scale = second.running_mean.double(), (second.running_var.double() + second.eps).rsqrt()
    scale = scale if second.weight is None else scale * second.weight.double()
    shift = -mean * scale + (0 if second.bias is None else second.bias.double())
    instead: nn.Module = nn.Identity()
    if source:
        first: Any = body.get_submodule(source)
        weight = first.weight.double() * scale.reshape(-1, *[1] * (first.weight.dim() - 1))
        bias = shift if first.bias is None else shift + first.bias.double() * scale
        first.weight, first.bias = (nn.Parameter(one.to(first.weight.dtype)) for one in (weight, bias))
    else:
        instead = Affine(scale.to(second.running_mean.dtype), shift.to(second.running_mean.dtype))
    _put(body, norm, instead)


class Affine(nn.Module):
    """What a fixed BatchNorm computes, ``scale * x + shift`` for each channel of (N, C, ...); faster than torch's own on CPUs.

    >>> Affine(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0]))(torch.ones(1, 2))
    tensor([[2., 4.]])
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Buffer(scale), nn.Buffer(shift)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        return torch.addcmul(self.shift.reshape(shape), x, self.scale.reshape(shape))


def pays(module: nn.Module) -> bool:
    """Whether a `SpaceToDepthConv` in this module's place makes the gradient of the images cheaper.

    >>> pays(nn.Conv2d(3, 8, 7, 2)), pays(nn.Conv2d(3, 8, 3, 2)), pays(nn.Conv2d(3, 8, 4, 4)), pays(nn.Conv2d(64, 8, 7, 2))
    (True, False, False, False)
    """
    if not isinstance(module, nn.Conv2d) or module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
        return False
    (kernel, *kernels), (step, *steps) = set(module.kernel_size), set(module.stride)
    # Patches that do not overlap, as vision transformers have them, gained nothing.
    if kernels or steps or not 1 < step < kernel or isinstance(module.padding, str) or 2 * module.in_channels > LANES:
        return False
    return (-(-kernel // step) * step) ** 2 <= GROWTH * kernel**2


class SpaceToDepthConv(nn.Module):
    """The function of a convolution of (N, C, H, W) with stride s, from blocks of s x s pixels as C s^2 channels.

    Kernels for three channels waste most of their vector lanes, above all in the gradient of the images. This one fills
    them. TResNet trains such a first layer (Ridnik et al. 2021, "space to depth"); here the weights are those that exist.

    >>> plain = nn.Conv2d(3, 4, 7, 2, padding=3)
    >>> x = torch.rand(2, 3, 9, 12)
    >>> torch.allclose(SpaceToDepthConv.of(plain)(x), plain(x), atol=1e-5)
    True
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, step: int, padding: tuple[int, int], kernel: int) -> None:
        super().__init__()
        self.step, self.padding, self.kernel = step, padding, kernel
        short = -kernel % step
        self.weight = nn.Parameter(F.pixel_unshuffle(F.pad(weight, (0, short, 0, short)), step))
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    @classmethod
    def of(cls, module: nn.Module) -> SpaceToDepthConv:
        """One with the weights of a convolution for which `pays` is true."""
        assert isinstance(module, nn.Conv2d)
        assert not isinstance(module.padding, str)
        bias = None if module.bias is None else module.bias.detach()
        return cls(module.weight.detach(), bias, module.stride[0], (module.padding[0], module.padding[1]), module.kernel_size[0])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'), H' and W' as the convolution has them, in the memory format of x."""
        edges: list[int] = []
        for side, pad in ((x.shape[3], self.padding[1]), (x.shape[2], self.padding[0])):
            out = (side + 2 * pad - self.kernel) // self.step + 1
            edges += [pad, (out - 1 + self.weight.shape[2]) * self.step - side - pad]
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        blocks = F.pixel_unshuffle(F.pad(x, edges), self.step)
        if last:
            blocks = blocks.contiguous(memory_format=torch.channels_last)
        return F.conv2d(blocks, self.weight, self.bias)


def _values(net: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    with torch.no_grad(), seeded(0, x.device):
        return activations(net, x, [*layers, LOGITS])


def _same(before: Tensor, after: Tensor) -> bool:
    return bool((before - after).abs().max() <= TOLERANCE * before.abs().max())
