"""Lucent as its users call it, on a current kornia: pictures of some channels of a torchvision network."""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

Renders = Callable[[], Tensor]


def lucent_renders(
    net: nn.Module, layer: str, units: Sequence[int], size: int, steps: int, preprocess: bool = True, seed: int = 0
) -> tuple[Renders | None, Renders | None]:
    """Two jobs that give (units, 3, size, size): all units in one batch, and one after the other; None without Lucent."""
    # Only to show pictures in notebooks; its own requirements would be installed for nothing.
    for name in ("IPython", "IPython.display"):
        sys.modules.setdefault(name, types.ModuleType(name))
    try:
        import kornia
        from kornia.geometry import transform as warps

        # Lucent looks for these where kornia had them until 0.4.
        for name in ("get_rotation_matrix2d", "warp_affine", "translate"):
            setattr(kornia, name, getattr(warps, name))
        from lucent.optvis import objectives, param
        from lucent.optvis import render as lucent
    except ImportError:
        print("tests/peers.txt is not installed: no comparison with Lucent")
        return None, None
    name = layer.replace(".", "_")

    def rendered(objective: object, batch: int) -> Tensor:
        torch.manual_seed(seed)
        np.random.seed(seed)
        images = lucent.render_vis(
            net, objective, lambda: param.image(size, batch=batch), thresholds=(steps,), progress=False, show_image=False,
            fixed_image_size=size, preprocess=preprocess,
        )  # fmt: skip
        # Its hooks stay behind, so that every call would be slower than the last.
        for module in net.modules():
            module._forward_hooks.clear()
        return torch.from_numpy(images[0]).movedim(-1, 1)

    def batch() -> Tensor:
        goals = [objectives.channel(name, unit, batch=i) for i, unit in enumerate(units)]
        total = goals[0]
        for goal in goals[1:]:
            total = total + goal
        return rendered(total, len(units))

    def alone() -> Tensor:
        return torch.cat([rendered(objectives.channel(name, unit), 1) for unit in units])

    net.eval()
    return batch, alone
