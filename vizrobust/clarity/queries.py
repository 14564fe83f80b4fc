"""The natural images that the 2AFC asks about, and controls: changed pictures whose clarity should stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.features import Objective, Scorer, main_term
from vizrobust.models import evaluating

BATCH_SIZE = 100
QUERIES = 20
# Hard distractors come from this part of the activation order, neither the top nor the bottom
# (docs/measuring-clarity.md, "Two-alternative forced choice").
HARD = (0.10, 0.50)


@dataclass(frozen=True)
class QueryRanking:
    """Natural images in falling activation of one unit: `index` (n,) into the split.

    Queries must not be exemplars, or the natural reference would be asked about itself. The caller keeps them apart, for
    example by taking two splits.

    >>> ranking = QueryRanking(torch.arange(100))
    >>> len(ranking.queries()), ranking.distractors()[[0, -1]].tolist()
    (20, [10, 49])
    """

    index: Tensor

    def queries(self, count: int = QUERIES) -> Tensor:
        """The images that excite the unit most."""
        return self.index[:count]

    def distractors(self) -> Tensor:
        """Hard distractors: the images at ranks 10 to 50 %."""
        first, last = (round(share * len(self.index)) for share in HARD)
        return self.index[first:last]

    def easy(self, count: int = QUERIES) -> Tensor:
        """Easy distractors: the images that excite the unit least."""
        return self.index[max(0, len(self.index) - count) :]

    def questions(self, variant: Literal["hard", "easy"] = "hard", count: int = QUERIES) -> tuple[Tensor, Tensor]:
        """(queries, distractors) without a common image. Raises ``ValueError`` where there are too few images for that.

        >>> [part.tolist() for part in QueryRanking(torch.arange(10)).questions("easy", count=2)]
        [[0, 1], [8, 9]]
        """
        hard = variant == "hard"
        queries, others = self.queries(count), self.distractors() if hard else self.easy(count)
        needed = round(count / HARD[0]) if hard else 2 * count
        if len(self.index) < needed:
            raise ValueError(f"the {variant} 2AFC needs at least {needed} images for {count} queries, got {len(self.index)}")
        return queries, others


def excitations(net: nn.Module, objective: Objective, units: Sequence[int], images: Split, compute: Compute) -> Tensor:
    """(units, n): how much each of n natural images excites each unit; penalties of an objective are left out.

    >>> from vizrobust.data import head, load
    >>> from vizrobust.features import Logit
    >>> from vizrobust.models import load_checkpoint
    >>> net, images = load_checkpoint("mnist-k8").net(), head(load("mnist5k").test, 3)
    >>> excitations(net, Logit(), [0, 1], images, Compute("cpu")).shape
    torch.Size([2, 3])
    """
    compute.place(net)
    channels, height, width = images.take(torch.tensor([0])).shape[1:]
    scorer = Scorer.of(net, main_term(objective), (channels, height, width), compute)
    wanted = torch.tensor(list(units), device=compute.device)
    columns = []
    with evaluating(net), torch.no_grad():
        for index, count in full_batches(len(images), BATCH_SIZE):
            x = compute.images(images.take(index))
            seen = scorer.activations(x)
            scores = [scorer.objective(seen, x, unit.expand(len(x))) for unit in wanted]
            columns.append(torch.stack(scores)[:, :count].float().cpu())
    return torch.cat(columns, dim=1)


def shared_rankings(excited: Sequence[Tensor]) -> list[QueryRanking]:
    """For each unit, the ranking by mean rank over several networks' excitations (units, n), which all of them share.

    >>> one, other = torch.tensor([[0.1, 0.5, 0.9]]), torch.tensor([[3.0, 9.0, 8.0]])
    >>> [ranking.index.tolist() for ranking in shared_rankings([one, other])]
    [[1, 2, 0]]
    """
    from scipy.stats import rankdata

    ranks = sum(torch.from_numpy(rankdata(one.numpy(), axis=1)) for one in excited)
    return [QueryRanking(row.argsort(descending=True, stable=True)) for row in torch.as_tensor(ranks)]


def contrast_matched(images: Tensor, reference: Tensor) -> Tensor:
    """Images with the natural images' mean and deviation, clipped: (N, C, H, W), (n, C, H', W') -> (N, C, H, W) in [0, 1].

    Mean and deviation are taken over all pixels and channels of an image, so that hues keep their order. Clipping comes last
    and reduces both a little. An image without contrast stays without. Raises ``ValueError`` without natural images.

    >>> flat, natural = torch.full((1, 1, 2, 2), 0.9), torch.tensor([0.2, 0.4]).expand(1, 1, 2, 2)
    >>> contrast_matched(torch.eye(2)[None, None], natural)
    tensor([[[[0.4000, 0.2000],
              [0.2000, 0.4000]]]])
    >>> contrast_matched(flat, natural).unique()
    tensor([0.3000])
    """
    if len(reference) == 0:
        raise ValueError("contrast is matched to natural images, got none; give at least one")
    mean, deviation = (value.mean() for value in _moments(reference))
    own_mean, own_deviation = _moments(images)
    scale = torch.where(own_deviation > 1e-6, deviation / own_deviation.clamp(min=1e-6), 0.0)
    centred = images.to(torch.float64) - own_mean[:, None, None, None]
    return (mean + scale[:, None, None, None] * centred).clamp(0, 1).to(images.dtype)


def blurred(images: Tensor, sigma: float = 1.0) -> Tensor:
    """Images (N, C, H, W) after a Gaussian blur of `sigma` pixels, mirrored at the edges; channel means stay.

    Raises ``ValueError`` for a negative or infinite `sigma`.

    >>> blurred(torch.eye(3)[None, None], sigma=0.0)[0, 0].diagonal()
    tensor([1., 1., 1.])
    """
    from scipy.ndimage import gaussian_filter

    if not 0 <= sigma < float("inf"):
        raise ValueError(f"a blur needs a deviation of at least 0 pixels, got {sigma:g}")
    return torch.from_numpy(gaussian_filter(images.cpu().numpy(), sigma, mode="reflect", axes=(2, 3))).to(images)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """(N,), (N,) float64: mean and deviation of each image."""
    flat = images.to(torch.float64).flatten(1)
    return flat.mean(1), flat.std(1, correction=0)
