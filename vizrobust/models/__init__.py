"""Networks: architectures by name, layers and activations, checkpoints in our format and in other people's."""

from vizrobust.models.architectures import ARCHS, architecture
from vizrobust.models.checkpoints import Checkpoint, Description, save_checkpoint
from vizrobust.models.forward import LOGITS, Normalized, activations, borrowed
from vizrobust.models.layers import Layer, Reading, layer, layers
from vizrobust.models.references import SWEEP, builtin_names, load_checkpoint

__all__ = [
    "ARCHS",
    "LOGITS",
    "SWEEP",
    "Checkpoint",
    "Description",
    "Layer",
    "Normalized",
    "Reading",
    "activations",
    "architecture",
    "borrowed",
    "builtin_names",
    "layer",
    "layers",
    "load_checkpoint",
    "save_checkpoint",
]
