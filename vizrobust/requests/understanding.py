"""Requests of the commands that ask what a network's answer depends on: explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vizrobust.requests.request import OnSplit, param
from vizrobust.spec import spec


@spec
@dataclass(frozen=True, kw_only=True)
class ExplainRequest(OnSplit):
    """Show which pixels a network's answer depends on, and measure what each such map is worth.

    The explained class is the one that the network predicts. Every map has measures: deletion and insertion against random
    orders, infidelity, sensitivity, dependence on the weights, sparsity. It needs captum: pip install 'vizrobust[explain]'.

    \b
    vizrobust explain mnist-k0 mnist-k8 --images 16
    vizrobust explain mnist-k8 mnist-k8@random --method saliency --method 'LayerCAM(layer="conv2")'
    vizrobust explain torchvision:resnet18 --data imagefolder:photos --images 4
    """

    images: int = param(16, "Explain the first N images of the split.", role="grows", least=1)
    methods: tuple[Any, ...] = param(
        (), "saliency, occlusion or a whole spec (vizrobust list attributions); several allowed [all of them].",
        kind="attribution", role="grows", flag="--method", metavar="SPEC",
    )  # fmt: skip
    show: int = param(4, "Images on the sheet.", role="view", least=1)
