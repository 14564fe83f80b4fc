"""How far the features of pictures are from those of natural images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_natural(pictures: Tensor, natural: Tensor) -> Tensor:
    """Cosine distance to the nearest natural image: (N, d), (n, d) -> (N,) float64 in [0, 2], smaller = clearer.

    docs/measuring-clarity.md, "Distance to natural images". There is no chance level, but the more natural images there
    are, the nearer is one, so compare at one n.
    The distance is 1 - cosine because encoders differ in the length of their features.

    >>> nearest_natural(torch.tensor([[3.0, 0.0], [0.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([0., 1.], dtype=torch.float64)
    """
    if len(natural) == 0:
        raise ValueError("the distance to the nearest natural image needs at least one natural image, got none")
    cosine = F.normalize(pictures.to(torch.float64), dim=1) @ F.normalize(natural.to(torch.float64), dim=1).T
    return 1 - cosine.amax(1)


def kernel_distance(pictures: Tensor, natural: Tensor) -> float:
    """Kernel distance of two sets of images, KID (Bińkowski et al. 2018): (N, d), (n, d) -> number, smaller = clearer.

    The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) under the kernel
    (x . y / d + 1)^3. 0 on average where both sets are draws from one distribution, so it may be negative. Its size
    depends on the encoder: compare under one judge. Raises ``ValueError`` for fewer than two images on a side.

    >>> near, far = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[4.0, 4.0], [5.0, 5.0]])
    >>> kernel_distance(near, near) < kernel_distance(far, near)
    True
    """
    if len(pictures) < 2 or len(natural) < 2:
        raise ValueError(f"the kernel distance needs two images on either side, got {len(pictures)} and {len(natural)}")
    x, y = pictures.to(torch.float64), natural.to(torch.float64)
    return float(_mean_of_pairs(_kernel(x, x)) + _mean_of_pairs(_kernel(y, y)) - 2 * _kernel(x, y).mean())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_of_pairs(kernel: Tensor) -> Tensor:
    """The mean off the diagonal: an image paired with itself would bias the estimate."""
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))
