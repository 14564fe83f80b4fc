"""Pictures with an opacity: what is seen of them over a ground."""

from __future__ import annotations

from torch import Tensor

GREY = 0.5


def composed(image: Tensor, ground: Tensor | float = GREY) -> Tensor:
    """(..., C + 1, H, W), colours and their opacity -> (..., C, H, W): ``opacity * colour + (1 - opacity) * ground``.

    The colours are not multiplied by the opacity beforehand, as in a PNG (Porter & Duff 1984, "over").

    >>> import torch
    >>> red_then_clear = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])[:, None]
    >>> composed(red_then_clear)[:, 0].T.tolist()
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    """
    colors, opacity = image[..., :-1, :, :], image[..., -1:, :, :]
    return opacity * colors + (1 - opacity) * ground
