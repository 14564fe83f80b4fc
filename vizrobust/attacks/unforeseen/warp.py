"""Images whose pixels are fetched from elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear samples of images (N, C, H, W) at each pixel plus `flow` (N, 2, H, W): right and down, in pixels.

    Beyond its border an image goes on as its mirror image. Without flow the image stays as it is, to rounding:
    the corners of the sampling grid are the centres of the corner pixels (other implementations leave torch's other
    convention on, and resample, that is blur, the image at flow 0).
    """
    height, width = x.shape[-2:]
    across = torch.arange(width, dtype=x.dtype, device=x.device)
    down = torch.arange(height, dtype=x.dtype, device=x.device)
    columns = (across + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    rows = (down[:, None] + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack((columns, rows), dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
