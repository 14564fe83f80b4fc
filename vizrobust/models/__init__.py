"""Networks: architectures by name, layers and activations, checkpoints in our format and in other people's."""

from vizrobust.models.architectures import ARCHS
from vizrobust.models.checkpoints import Checkpoint, CheckpointInfo, save_checkpoint
from vizrobust.models.forward import LOGITS, Normalized, activations, evaluating
from vizrobust.models.layers import ActivationReader, Layer, layer, layers
from vizrobust.models.references import SWEEP, architecture, load_checkpoint
from vizrobust.plugins import builtin_names

__all__ = [
    "ARCHS",
    "LOGITS",
    "SWEEP",
    "ActivationReader",
    "Checkpoint",
    "CheckpointInfo",
    "Layer",
    "Normalized",
    "activations",
    "architecture",
    "builtin_names",
    "evaluating",
    "layer",
    "layers",
    "load_checkpoint",
    "save_checkpoint",
]
