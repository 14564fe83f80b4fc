"""Networks: architectures by name, layers and activations, checkpoints in our format and in other people's."""

from vizrobust.models.architectures import architecture
from vizrobust.models.borrow import borrowed
from vizrobust.models.checkpoints import Checkpoint, Description, save_checkpoint
from vizrobust.models.forward import LOGITS, activations
from vizrobust.models.layers import Layer, layer, layers
from vizrobust.models.networks import ARCHS
from vizrobust.models.normalized import Normalized
from vizrobust.models.reading import Reading
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
