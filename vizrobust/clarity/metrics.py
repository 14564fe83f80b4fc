"""Measures of clarity: pure functions of a judge's view of images, one number per unit, larger = clearer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor


def transfer(logits: Tensor, unit: Tensor) -> Tensor:
    """Log-odds that an outside judge gives the intended class: (N, classes), (N,) -> (N,). After Fel et al. 2023.

    >>> transfer(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
    tensor([0., 3.])
    """
    own = logits.gather(1, unit[:, None])[:, 0]
    others = torch.where(F.one_hot(unit, logits.shape[1]).bool(), -torch.inf, logits)
    return own - others.logsumexp(1)


def recognised(logits: Tensor, unit: Tensor) -> Tensor:
    """Whether the judge's first guess is the intended class: (N, classes), (N,) -> (N,) bool. Shown beside `transfer`."""
    return logits.argmax(1) == unit


def forced_choice(exciting: Tensor, other: Tensor, queries: Tensor, distractors: Tensor) -> float:
    """Two-alternative forced choice by machine (after Borowski et al. 2021; Zimmermann et al. 2024): an AUC, chance .5.

    `exciting` (R, d) and `other` (R', d) are features of pictures that do and do not belong to the unit, `queries`
    (n, d) and `distractors` (m, d) of natural images that excite it and that do not. Each natural image q is scored
    by its mean cosine to the exciting pictures minus that to the others; the AUC says how well that score tells
    queries from distractors.

    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> forced_choice(a, b, queries=a, distractors=b), forced_choice(b, a, queries=a, distractors=b)
    (1.0, 0.0)
    """
    natural = torch.cat((queries, distractors))
    score = mean_cosine(natural, exciting) - mean_cosine(natural, other)
    # The area under the curve by ranks (Mann & Whitney 1947), ties halved; scikit-learn's takes a hundred times as long.
    n, m = len(queries), len(distractors)
    above = rankdata(score.numpy())[:n].sum() - n * (n + 1) / 2
    return float(above / (n * m))


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n,): each row's mean cosine to the rows of b."""
    return (F.normalize(a.to(torch.float64), dim=1) @ F.normalize(b.to(torch.float64), dim=1).T).mean(1)
