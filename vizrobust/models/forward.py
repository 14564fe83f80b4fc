"""One forward pass in evaluation mode that leaves the network untouched and can end early; normalization as a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vizrobust.rng import Streams, generator_states, same_states, seeded, set_generator_states, undisturbed
from vizrobust.spec import unknown


@contextmanager
def evaluating(net: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode, with gradients possible even below a caller's ``no_grad``
    or inference mode.

    Afterwards every module has its own training flag again. Nothing else needs to be given back: image gradients
    come from ``torch.autograd.grad``, which leaves every ``.grad`` alone, and hooks are removed where they are set.
    """
    flags = [(module, module.training) for module in net.modules()]
    # A module takes long to set an attribute, so only what changes is set.
    if any(training for _, training in flags):
        net.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield net
    finally:
        for module, training in flags:
            if module.training != training:
                module.training = training


class Normalized(nn.Module):
    """``net((x - mean) / std)`` with one mean and standard deviation per channel; x is (N, C, H, W) in [0, 1].

    There is deliberately no clip: torch's clamp has zero gradient at the bound and would mask saturated pixels.
    Whatever the network returns, this returns its logits (see `logits_of`). With `contiguous`, which `choose_memory_format`
    sets, the network gets images in torch's default memory format even where the library has them channels-last.

    >>> net = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), mean=[0.5] * 3, std=[0.2] * 3)
    >>> net(torch.rand(4, 3, 2, 2)).shape
    torch.Size([4, 5])
    """

    mean: Tensor
    std: Tensor
    contiguous = False
    # What `models.probing` finds: it must get one image at a time, and on what its outputs depend besides the image.
    alone = False
    depends_on = ""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or any(value <= 0 for value in std):
            raise ValueError(f"normalization needs as many means as positive deviations, got {tuple(mean)} / {tuple(std)}")
        self.register_buffer("mean", torch.tensor(list(mean)).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1), persistent=False)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        normalized = (x - self.mean) / self.std
        return logits_of(self.net(normalized.contiguous() if self.contiguous else normalized), len(x))


class Logits(nn.Module):
    """The logits of a network whatever it returns (see `logits_of`); what it writes into its images stays out of them.

    >>> Logits(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)))(torch.rand(4, 3, 2, 2)).shape
    torch.Size([4, 2])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.training = net, net.training

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.net(x.clone()), len(x))


class NoLogits(ValueError):
    """What a network returned is not logits."""


def logits_of(output: Any, count: int | None = None) -> Tensor:
    """The logits (N, classes) in what a network returned, by one rule for every command and for training.

    A tensor is the logits; else the attribute ``logits`` (Hugging Face, and torchvision's networks with auxiliary heads),
    else a dict's ``logits`` or ``out``, else the first of a tuple or list. One logit z (N, 1) is that of two classes: -z/2 and
    z/2, whose softmax has sigmoid(z) for class 1. Raises `NoLogits`, a ``ValueError``, otherwise.

    >>> logits_of({"features": torch.rand(2, 9), "logits": torch.rand(2, 5)}).shape, logits_of((torch.rand(2, 5), None)).shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """
    found = output
    if not isinstance(found, Tensor):
        if isinstance(getattr(found, "logits", None), Tensor):
            found = found.logits
        elif isinstance(found, Mapping):
            found = next((found[key] for key in ("logits", "out") if key in found), found)
        elif isinstance(found, tuple | list) and found:
            found = found[0]
    if not isinstance(found, Tensor) or found.dim() != 2:
        kind = str(tuple(found.shape)) if isinstance(found, Tensor) else type(found).__name__
        if isinstance(found, Tensor) and found.dim() == 1 and not found.is_floating_point():
            raise NoLogits(
                "the network must return logits (N, classes) for N images, it returned a label for each; return "
                "torch.nn.functional.one_hot(labels, classes).float(), which HopSkipJump attacks without gradients"
            )
        raise NoLogits(
            f"the network must return logits (N, classes) for N images, it returned {kind}; return a tensor, or one under "
            "the name logits"
        )
    if found.is_complex() or count not in (None, len(found)):
        kind = f"{tuple(found.shape)} for {count} of them" if count not in (None, len(found)) else str(found.dtype)
        raise NoLogits(
            f"the network must return real logits (N, classes) for N images, it returned {kind}; return a row for each"
        )
    found = found if found.is_floating_point() else found.float()
    if found.shape[1] == 1:
        return torch.cat([-found, found], 1) / 2
    return found


def predicted_classes(logits: Tensor) -> Tensor:
    """(N, classes) -> (N,): the largest logit's class, -1 where an output is not finite, which is nobody's class.

    >>> predicted_classes(torch.tensor([[0.0, 2.0], [float("nan"), 1.0]])).tolist()
    [1, -1]
    """
    return logits.argmax(1).where(logits.isfinite().all(1), -1)


def constant_class(predicted: Tensor, correct: Tensor) -> int | None:
    """The class that is predicted (n,) for all images, where it is not the `correct` (n,) bool one of all; else None.

    >>> constant_class(torch.tensor([2, 2, 2]), torch.tensor([True, False, False]))
    2
    """
    if len(predicted) < 2 or correct.all() or predicted[0] < 0 or bool((predicted != predicted[0]).any()):
        return None
    return int(predicted[0])


def choose_memory_format(net: Normalized, shape: tuple[int, int, int]) -> bool:
    """Let a network that fails on channels-last images get contiguous ones; whether that was needed.

    Old code that says ``x.view(len(x), -1)`` behind a convolution fails on such images. Two passes of two images of `shape`
    (C, H, W), with batch statistics and random numbers left alone; a network that fails both ways is left as it is.
    """

    def runs() -> bool:
        try:
            net(x)
        except Exception:  # whatever a network does
            return False
        return True

    weight = next(iter(net.parameters()), torch.zeros(()))
    x = torch.full((2, *shape), 0.5, device=weight.device).contiguous(memory_format=torch.channels_last)
    with evaluating(net), torch.no_grad(), undisturbed(weight.device):
        if runs():
            return False
        net.contiguous = True
        net.contiguous = runs()
    return net.contiguous


LOGITS = "logits"


class _DeepEnough(Exception):
    """The deepest layer asked for has been reached."""


def without_normalization(net: nn.Module) -> nn.Module:
    """The network without the normalization in front, which is not a layer."""
    return net.net if isinstance(net, Normalized) else net


def modules(net: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network by dotted name."""
    return {name: module for name, module in without_normalization(net).named_modules() if name}


def activations(net: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The outputs of the named layers for images x, from one forward pass that ends at the deepest of them.

    `logits` is the network's own output. A module that runs several times counts at its first run, one that returns
    several tensors with the first. Values are those before any in-place operation behind the layer, in the module's
    own layout (`ActivationReader` gives every layer as (N, units, height, width)). Differentiable; raises ``ValueError`` for
    an unknown layer or one that the forward pass does not use.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    >>> found = activations(net, torch.rand(5, 1, 8, 8), ["0", "logits"])
    >>> found["0"].shape, found["logits"].shape
    (torch.Size([5, 2, 6, 6]), torch.Size([5, 72]))
    """
    there = modules(net)
    for name in layers:
        if name != LOGITS and name not in there:
            raise ValueError(unknown(name, [*there, LOGITS], "layer"))
    return collect(net, x, layers, {name: output_of(there[name]) for name in layers if name != LOGITS})


# Given what to call with a tensor, it registers a hook and returns the handle.
Hook = Callable[[Callable[[Tensor], None]], RemovableHandle]


def output_of(module: nn.Module) -> Hook:
    """The hook of a module's own output."""
    return lambda keep: module.register_forward_hook(lambda _module, _inputs, output: keep(first_tensor(output)))


def collect(net: nn.Module, x: Tensor, names: Sequence[str], hooks: dict[str, Hook]) -> dict[str, Tensor]:
    """What the hooks called `names` hand out during one forward pass that ends at the last of them, and `logits`."""
    wanted = [name for name in dict.fromkeys(names) if name != LOGITS]
    needs_output = LOGITS in names
    found: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        if name in found:
            return
        last = not needs_output and len(found) == len(wanted) - 1
        # An in-place ReLU behind the layer would overwrite it; the last one is safe, nothing runs behind it.
        found[name] = tensor if last else tensor.clone()
        if last:
            raise _DeepEnough

    handles: list[RemovableHandle] = []
    try:
        handles += [hooks[name](lambda tensor, name=name: keep(name, tensor)) for name in wanted]  # type: ignore[misc]
        output = net(x)
        if needs_output:
            found[LOGITS] = output
    except _DeepEnough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"layer {missing[0]!r} is not used in the forward pass of this network")
    return found


def first_tensor(output: Any) -> Tensor:
    """A module's output, or the first tensor of several; ``ValueError`` where there is none."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"a layer's output is {type(output).__name__}, not a tensor")
    return output


class PerImageNoise(nn.Module):
    """A network whose noise for an image, if it has any, depends on the image's random stream alone.

    Torch's global generators serve a whole batch, so the noise of a stochastic network (dropout that stays on, random
    smoothing) depends on an image's position in it. Once a pass has drawn from them, `stochastic` is True, and that pass
    and all later ones are made image by image, each under a seed that is made from the image's stream (see `noise_from`)
    and from the state of the global generator before the pass: passes under one global seed repeat, and a second pass
    has other noise than the first. Gradients flow as through the network itself. A network that draws nothing is called
    with whole batches, unless its outputs for an image depend on the others (`alone`).

    >>> class Noisy(nn.Module):
    ...     def forward(self, x):
    ...         return x.flatten(1) + torch.rand_like(x).flatten(1)
    >>> net, x = PerImageNoise(Noisy()), torch.zeros(2, 1, 1, 2)
    >>> with seeded(0, x.device):
    ...     net.noise_from(lambda: Streams(0, ["a", "b"]))
    ...     pair = net(x)
    >>> with seeded(0, x.device):
    ...     net.noise_from(lambda: Streams(0, ["b"]))
    ...     bool((net(x[:1])[0] == pair[1]).all())
    True
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.alone, self.depends_on = bool(getattr(net, "alone", False)), str(getattr(net, "depends_on", ""))
        self.stochastic = False
        self._streams: Callable[[], Streams] | None = None

    def noise_from(self, streams: Callable[[], Streams]) -> None:
        """The streams of the images of the passes to come; image i of a longer batch has stream i modulo their number."""
        self._streams = streams

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        if not self.stochastic or self._streams is None:
            before = generator_states(x.device)
            logits: Tensor = torch.cat([self.net(one) for one in torch.split(x, 1)]) if self.alone else self.net(x)
            self.stochastic = not same_states(before, generator_states(x.device))
            if not self.stochastic or self._streams is None:
                return logits
            set_generator_states(before, x.device)
        passed = int(torch.randint(2**62, ()))
        high, low = self._streams().child(f"network {passed}").integers(1 << 24, 2).unbind(1)
        seeds = ((high << 24) + low).tolist()
        found = []
        for i in range(len(x)):
            with seeded(seeds[i % len(seeds)] + i // len(seeds), x.device):
                found.append(self.net(x[i : i + 1]))
        return torch.cat(found)
