"""Adversarial images to keep: saved as arrays or in 8 bits, and somebody's changed images checked against the originals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vizrobust.attacks import L1, L2, Attack, Ball, Linf, ball_of, epsilon
from vizrobust.compute import Compute, full_batches, size_class
from vizrobust.models import evaluating
from vizrobust.models.forward import PerImageNoise, predicted_classes
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.accuracy import CLEAN
from vizrobust.robustness.evaluation import BATCH_SIZE
from vizrobust.runs import write_atomic, write_png
from vizrobust.spec import vary

LEVELS = 255
# A norm may exceed the radius by the rounding of its sum.
ROUNDING = 1e-6


@dataclass(frozen=True)
class AdversarialImages:
    """n images after an attack: `adversarial` and `clean` (n, C, H, W) float32 in [0, 1], the rest (n,).

    `predictions` are the network's classes for the adversarial images, `norms` the size of each change in the attack's
    norm, `indices` the images' places in the split; `about` says where they are from.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    predictions: Tensor
    norms: Tensor
    indices: Tensor
    classes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def save(self, file: str | Path) -> None:
        """Write one .npz file, which ``npz:FILE`` reads as a data set of the adversarial images, every bit the same.

        Arrays: x_test and x_clean (n, H, W, C), y_test, predictions, norms, indices, classes; `about` is JSON with the
        sha256 of both arrays of images.

        >>> from tempfile import TemporaryDirectory
        >>> from vizrobust.data import load
        >>> x, y = torch.rand(2, 1, 3, 4), torch.tensor([0, 1])
        >>> with TemporaryDirectory() as folder:
        ...     AdversarialImages(x / 2, x, y, y, y.float(), y, ("a", "b")).save(f"{folder}/kept.npz")
        ...     again = load(f"npz:{folder}/kept.npz").test.take(torch.arange(2))
        >>> torch.equal(again, x)
        True
        """
        images = {name: _last(x) for name, x in (("x_test", self.adversarial), ("x_clean", self.clean))}
        hashes = {f"{name}_sha256": hashlib.sha256(x.tobytes()).hexdigest() for name, x in images.items()}
        others = ("predictions", "norms", "indices")
        arrays: dict[str, Any] = {
            **images,
            "y_test": self.labels.numpy(),
            **{name: getattr(self, name).numpy() for name in others},
            "about": np.array(json.dumps({**self.about, **hashes})),
        }
        if self.classes:
            arrays["classes"] = np.array(self.classes)
        write_atomic(file, lambda opened: np.savez_compressed(opened, **arrays))

    def save_png(self, folder: str | Path) -> None:
        """Write 8-bit PNGs, ``FOLDER/CLASS/INDEX.png``, which ``imagefolder:FOLDER`` reads; first bring them to `eight_bit`."""
        values = (_last(self.adversarial) * LEVELS).round().astype(np.uint8)
        for pixels, label, index, found in zip(
            values, self.labels.tolist(), self.indices.tolist(), self.predictions.tolist(), strict=True
        ):
            path = Path(folder) / (self.classes[label] if self.classes else str(label)) / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            texts = {"vizrobust": json.dumps({**self.about, "index": index, "label": label, "prediction": found})}
            write_png(path, pixels[..., 0] if pixels.shape[-1] == 1 else pixels, texts)


def _last(x: Tensor) -> np.ndarray[Any, Any]:
    """(n, C, H, W) -> (n, H, W, C), as data sets in .npz files have it."""
    return np.ascontiguousarray(x.float().permute(0, 2, 3, 1).numpy())


def predicted(net: nn.Module, x: Tensor, compute: Compute, seed: int = 0, batch_size: int = BATCH_SIZE) -> Tensor:
    """(n, C, H, W) -> (n,): the classes, -1 where the outputs are not finite; in batches as an evaluation makes them."""
    network, found = PerImageNoise(compute.place(net)), []
    for batch, count in full_batches(len(x), size_class(len(x), batch_size)):
        network.noise_from(partial(Streams, seed, batch.tolist(), CLEAN))
        with evaluating(network), compute.autocast(), torch.no_grad(), seeded(0, compute.device):
            logits = network(compute.images(x[batch]))[:count].cpu()
        found.append(predicted_classes(logits))
    return torch.cat(found)


def rounded(ball: Ball | None, x: Tensor, adv: Tensor) -> Tensor:
    """The 8-bit image nearest to `adv`, or one inside the ball around `x` where that leaves it; all (n, C, H, W).

    In L-inf the nearest 8-bit values inside; else values are rounded towards the image where rounding made the norm
    too large. An image `x` that is not in 8 bits itself may have none inside; then the one nearest to it.

    >>> x = torch.zeros(1, 1, 1, 2)
    >>> rounded(Linf(eps=0.3), x, x + 0.3) * 255
    tensor([[[[76., 76.]]]])
    """
    nearest = (adv * LEVELS).round()
    if ball is None or ball.eps is None:
        return nearest / LEVELS
    if isinstance(ball, Linf):
        # The hair keeps x + eps itself, where that is a whole number of levels.
        reach = epsilon(ball) * LEVELS + 1e-4
        low, high = (x * LEVELS - reach).ceil(), (x * LEVELS + reach).floor()
        return torch.maximum(torch.minimum(nearest, high), low).clamp_(0, LEVELS) / LEVELS
    if isinstance(ball, L1 | L2):
        inward = torch.where(adv > x, (adv * LEVELS + 1e-4).floor(), (adv * LEVELS - 1e-4).ceil())
        outside = ball.norm(nearest / LEVELS - x) > epsilon(ball) + ROUNDING
        return torch.where(outside.reshape(-1, 1, 1, 1), inward, nearest).clamp_(0, LEVELS) / LEVELS
    return torch.where(adv == x, (x * LEVELS).round(), nearest) / LEVELS


class Rounded(nn.Module):
    """A network that sees its images in 8 bits; its gradient passes through the rounding unchanged."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x + ((x.detach() * LEVELS).round() / LEVELS - x.detach()))


def eight_bit(
    net: nn.Module, attack: Attack, kept: AdversarialImages, compute: Compute, seed: int = 0, batch_size: int = BATCH_SIZE
) -> AdversarialImages:
    """The images in 8 bits inside the ball, with the network's classes for them.

    Images that rounding brought back to their class are attacked again, through the rounding and in a ball whose
    L-inf radius is a whole number of levels, and take what that finds if it is misclassified.
    """
    ball = ball_of(attack)
    adv = rounded(ball, kept.clean, kept.adversarial)
    found = predicted(net, adv, compute, seed, batch_size)
    back = ((found == kept.labels) & (kept.predictions != kept.labels)).nonzero()[:, 0]
    if len(back):
        again = attack
        if isinstance(ball, Linf) and ball.eps is not None:
            again = vary(attack, eps=int(ball.eps * LEVELS + 1e-4) / LEVELS)
        streams = Streams(seed, kept.indices[back].tolist(), "attack").child("8 bits")
        x, y = compute.images(kept.clean[back]), kept.labels[back].to(compute.device)
        with seeded(seed, compute.device):
            best = again(Rounded(compute.place(net)), x, y, streams=streams).best
        assert best is not None
        tried = rounded(ball, kept.clean[back], best.cpu())
        classes = predicted(net, tried, compute, seed, batch_size)
        better = classes != kept.labels[back]
        adv[back[better]], found[back[better]] = tried[better], classes[better]
    norms = (ball or Linf()).norm(adv - kept.clean)
    return AdversarialImages(kept.clean, adv, kept.labels, found, norms, kept.indices, kept.classes, {**kept.about, "bits": 8})


def outside(ball: Ball, clean: Tensor, adv: Tensor) -> Tensor:
    """(n,) bool: the images that leave the ball around the clean ones by more than rounding (1e-6).

    >>> outside(Linf(eps=0.1), torch.zeros(2, 1, 1, 1), torch.tensor([0.1, 0.2]).reshape(2, 1, 1, 1))
    tensor([False,  True])
    """
    return ball.norm(adv - clean) > epsilon(ball) + ROUNDING
