"""Randomized smoothing: certified L2 radii of a network under Gaussian noise, and the smallest attack on the same network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks import Attack
from vizrobust.compute import Compute
from vizrobust.models import evaluating
from vizrobust.rng import Streams, seeded

SELECTION = 100  # votes that choose the class; other noise than that of the estimate
VOTES = 250  # noisy copies in one batch
SOFT_VOTES = 32  # noisy copies of an iterate of the attack
GROWTH, GROWTHS, HALVINGS = 1.5, 12, 5  # of the step along which an attack is verified


@dataclass(frozen=True)
class Certificate:
    """What smoothing says of one image: the class `predicted`, its lower bound `p_low`, and the certified L2 `radius`.

    `abstains` where p_low is not above 1/2; the radius is then 0. `lost` copies had outputs that are not finite; where none
    of those that choose the class is left, `predicted` is -1, nobody's class.
    """

    predicted: int
    p_low: float
    radius: float
    lost: int = 0

    @property
    def abstains(self) -> bool:
        return self.radius == 0


def certificate(selection: Tensor, votes: Tensor, sigma: float, alpha: float, count: int | None = None) -> Certificate:
    """The certificate that votes (classes,) give, wrong with a probability of at most `alpha` (Cohen et al. 2019, CERTIFY).

    `selection` (classes,) are votes of other noise, which choose the class. `count` is how many copies were asked, where some
    gave no vote: those count against the class. The radius is sigma times the normal quantile
    of the Clopper-Pearson lower bound of that class's probability.

    >>> found = certificate(torch.tensor([9, 1]), torch.tensor([990, 10]), sigma=0.5, alpha=0.001)
    >>> found.predicted, round(found.p_low, 4), round(found.radius, 3)
    (0, 0.976, 0.989)
    """
    from scipy.stats import binomtest, norm

    lost = (count or int(votes.sum())) - int(votes.sum())
    if not selection.any():
        return Certificate(-1, 0.0, 0.0, lost)
    top = int(selection.argmax())
    bound = binomtest(int(votes[top]), count or int(votes.sum()), alternative="greater").proportion_ci(1 - alpha, method="exact")
    p_low = float(bound.low)
    return Certificate(top, p_low, max(0.0, sigma * float(norm.ppf(p_low))) if p_low > 0.5 else 0.0, lost)


def largest_radius(sigma: float, samples: int, alpha: float) -> float:
    """The radius of an image for which all votes agree.

    >>> round(largest_radius(0.5, 1000, 0.001), 3)
    1.232
    """
    from scipy.stats import norm

    return sigma * float(norm.ppf(alpha ** (1 / samples)))


def votes(net: nn.Module, x: Tensor, sigma: float, count: int, streams: Streams) -> Tensor:
    """(classes,): how many of `count` noisy copies of one image (C, H, W) are called what; noise is not clipped.

    A copy whose outputs are not finite has no vote.

    >>> votes(nn.Flatten(), torch.tensor([[[0.9, 0.1]]]), 0.1, 300, Streams(0, [0])).tolist()
    [300, 0]
    """
    found: Tensor | None = None
    with torch.no_grad():
        for number, start in enumerate(range(0, count, VOTES)):
            noise = streams.child(f"votes {number}").normal(VOTES, *x.shape)[0].to(x)
            logits = net((x + sigma * noise).contiguous(memory_format=torch.channels_last))
            logits = logits[: count - start]
            said = logits.argmax(1)[logits.isfinite().all(1)].bincount(minlength=logits.shape[1]).cpu()
            found = said if found is None else found + said
    assert found is not None
    return found


class SmoothedNetwork(nn.Module):
    """The log of the mean probabilities over noisy copies of each image, with other noise in every pass (Salman et al. 2019).

    An attack on it is one on the smoothed network by expectation over transformation; `streams` are the images'.

    >>> net = SmoothedNetwork(nn.Flatten(), 0.1, Streams(0, [0, 1]))
    >>> net(torch.rand(2, 1, 1, 3)).exp().sum(1).round().tolist()
    [1.0, 1.0]
    """

    def __init__(self, net: nn.Module, sigma: float, streams: Streams, samples: int = SOFT_VOTES) -> None:
        super().__init__()
        self.net, self.sigma, self.streams, self.samples, self.passes = net, sigma, streams, samples, 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        noise = self.streams.child(f"pass {self.passes}").normal(self.samples, *x.shape[1:]).to(x)
        self.passes += 1
        logits = self.net((x[:, None] + self.sigma * noise).flatten(0, 1))
        return logits.log_softmax(1).unflatten(0, (len(x), self.samples)).logsumexp(1) - torch.tensor(self.samples).log()


def certified(
    net: nn.Module, x: Tensor, compute: Compute, *, sigma: float, samples: int, alpha: float, streams: Streams
) -> Certificate:
    """The certificate of one image (C, H, W); selection and estimation have noise of their own.

    >>> certified(nn.Flatten(), torch.tensor([[[0.9, 0.1]]]), Compute("cpu"), sigma=0.1, samples=250, alpha=0.001,
    ...           streams=Streams(0, [0])).predicted
    0
    """
    x = compute.images(x[None])[0]
    with evaluating(net), compute.autocast(), seeded(0, compute.device):
        chosen = votes(net, x, sigma, SELECTION, streams.child("selection"))
        counted = votes(net, x, sigma, samples, streams.child("estimation"))
    return certificate(chosen, counted, sigma, alpha, samples)


def smallest_attack(
    net: nn.Module, x: Tensor, found: Certificate, attack: Attack, compute: Compute, *, sigma: float, samples: int, alpha: float,
    streams: Streams,
) -> float | None:  # fmt: skip
    """The L2 size of the smallest change found for which the smoothed network says another class; None: none was found.

    `attack` looks for one on the mean probabilities. Along its direction the nearest point is taken at which `samples`
    votes are against the class `found` at the level `alpha` (Cohen et al. 2019, PREDICT), so this end of the bracket is as
    sure as the other.
    """
    x = compute.images(x[None])
    y = torch.tensor([found.predicted], device=x.device)
    smoothed = SmoothedNetwork(net, sigma, streams.child("attack noise"))
    with evaluating(net), compute.autocast(), seeded(0, compute.device):
        result = attack(smoothed, x, y, streams=streams.child("attack"))
        assert result.best is not None
        # Where the image itself lost by chance, the attack's own verdict points nowhere.
        change = next((point - x for point in (result.best, result.x) if not torch.equal(point, x)), torch.zeros_like(x))
        size = float(change.norm())
        tried = 0

        def lost(step: float) -> bool:
            nonlocal tried
            tried += 1
            point = (x + step * change).clamp(0, 1)[0]
            return _against(votes(net, point, sigma, samples, streams.child(f"verify {tried}")), found.predicted, alpha)

        if size == 0:
            return None
        low, high = found.radius / size, max(1.0, found.radius / size)
        for _ in range(GROWTHS):
            if lost(high):
                break
            low, high = high, GROWTH * high
        else:
            return None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if lost(middle) else (middle, high)
    return float(((x + high * change).clamp(0, 1) - x).norm())


def _against(counted: Tensor, own: int, alpha: float) -> bool:
    """Whether the votes say that another class is more probable than this one."""
    from scipy.stats import binomtest

    others = counted.clone()
    others[own] = -1
    most = int(others.max())
    return most > int(counted[own]) and float(binomtest(most, most + int(counted[own])).pvalue) <= alpha
