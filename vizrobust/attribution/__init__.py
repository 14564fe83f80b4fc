"""Attribution: which pixels a network's answer depends on, and measures that say what such a map is worth."""

from vizrobust.attribution.explanations import MEASURES, Explained, explained, passes
from vizrobust.attribution.methods import (
    ATTRIBUTIONS,
    Attribution,
    GuidedBackprop,
    IntegratedGradients,
    LayerCAM,
    Occlusion,
    Saliency,
    SmoothGrad,
    captum,
    parse_attribution,
)

__all__ = [
    "ATTRIBUTIONS",
    "MEASURES",
    "Attribution",
    "Explained",
    "GuidedBackprop",
    "IntegratedGradients",
    "LayerCAM",
    "Occlusion",
    "Saliency",
    "SmoothGrad",
    "captum",
    "explained",
    "parse_attribution",
    "passes",
]
