"""All commands by name: the request that states one, and the function that answers it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from vizrobust.requests.request import MissingFileError, ParameterError, Request


class Command(NamedTuple):
    """A command: its request, ``module:Class`` in `vizrobust.requests`; its function, ``module:name`` in `vizrobust.commands`.

    `group` is its heading in the program's help, `summary` its line there. `resumable` commands continue where they
    stopped, `parallel` ones share their work among the processes that torchrun starts. `session` are the options of a
    session that it takes (None: all), `exits` are the exit codes of a result whose `ok` is False or None.
    """

    request: str
    function: str
    group: str
    summary: str
    resumable: bool = False
    parallel: bool = False
    session: tuple[str, ...] | None = None
    exits: Mapping[bool | None, int] = {False: 1, None: 1}


# In the order of a person's path, as the program's help lists them.
COMMANDS: dict[str, Command] = {
    "neurons": Command(
        "pictures:NeuronsRequest",
        "neurons:neurons",
        "look",
        "Render what excites a network's units, and score its clarity.",
        resumable=True,
        parallel=True,
    ),
    "spritemap": Command(
        "pictures:SpritemapRequest", "neurons:spritemap", "look", "Render all units of a layer on one sheet.", resumable=True
    ),
    "atlas": Command("pictures:AtlasRequest", "neurons:atlas", "look", "Draw an activation atlas of a layer.", resumable=True),
    "microscope": Command(
        "pictures:MicroscopeRequest",
        "microscope:microscope",
        "look",
        "Write a site with a page for each layer, unit and class.",
        resumable=True,
    ),
    "compare": Command(
        "pictures:CompareRequest",
        "compare:compare",
        "look",
        "Put checkpoints side by side: accuracy, pictures, clarity.",
        resumable=True,
        parallel=True,
    ),
    "study": Command(
        "study:StudyRequest",
        "study:study",
        "study",
        "Train a sweep over attack steps, or take one, and report.",
        resumable=True,
        parallel=True,
    ),
    "verify": Command(
        "study:VerifyRequest",
        "study:verify",
        "study",
        "Check a study's report by computing samples of it again.",
        session=("download", "device", "as_json", "quiet"),
    ),
    "gallery": Command(
        "pictures:GalleryRequest", "pictures:gallery", "files", "Join the pictures of finished runs into one page.", session=()
    ),
    "trials": Command(
        "study:TrialsRequest",
        "trials:trials",
        "study",
        "Ask a person what the judges are asked about pictures.",
        session=("download", "arch", "as_json"),
    ),
    "rerender": Command(
        "pictures:RerenderRequest",
        "pictures:rerender",
        "files",
        "Render a picture again from its PNG, and compare pixels.",
        session=("download", "arch", "device", "as_json"),
    ),
    "invert": Command(
        "pictures:InvertRequest",
        "reconstruct:invert",
        "look",
        "Find an image with the activations of a given one.",
        resumable=True,
    ),
    "caricature": Command(
        "pictures:CaricatureRequest",
        "reconstruct:caricature",
        "look",
        "Exaggerate what a layer sees in an image.",
        resumable=True,
    ),
    "accentuate": Command(
        "pictures:AccentuateRequest",
        "reconstruct:accentuate",
        "look",
        "Change an image so that a unit is excited more.",
        resumable=True,
    ),
    "train": Command(
        "training:TrainRequest",
        "train:train",
        "train",
        "Train a network with K attack steps; resumable.",
        resumable=True,
        parallel=True,
    ),
    "judge": Command(
        "training:JudgeRequest", "train:judge", "train", "Train judges of clarity for your own data.", resumable=True
    ),
    "calibrate": Command(
        "evaluation:CalibrateRequest",
        "experiments:calibrate",
        "evaluate",
        "Find the sizes at which unforeseen attacks are equally hard.",
        resumable=True,
    ),
    "attack": Command(
        "evaluation:AttackRequest",
        "attack:attack",
        "evaluate",
        "Attack checkpoints: robust accuracy with intervals.",
        resumable=True,
        parallel=True,
    ),
    "masking": Command(
        "evaluation:MaskingRequest",
        "masking:masking",
        "evaluate",
        "Say whether a network masks its gradients, with evidence.",
        resumable=True,
        parallel=True,
        exits={False: 3, None: 4},
    ),
    "explain": Command(
        "understanding:ExplainRequest",
        "explain:explain",
        "look",
        "Show which pixels an answer depends on, and check the maps.",
        resumable=True,
    ),
    "intervene": Command(
        "understanding:InterveneRequest",
        "layer_units:intervene",
        "look",
        "Remove or scale units, and see what each class loses.",
        resumable=True,
    ),
    "dictionary": Command(
        "understanding:DictionaryRequest",
        "layer_units:dictionary",
        "look",
        "Fit a dictionary (PCA, NMF, sparse) to a layer.",
        session=("download", "arch", "device", "as_json", "quiet"),
    ),
    "certify": Command(
        "understanding:CertifyRequest",
        "certify:certify",
        "evaluate",
        "Give radii within which no attack can succeed.",
        resumable=True,
    ),
    "first-order": Command(
        "evaluation:FirstOrderRequest",
        "experiments:first_order",
        "evaluate",
        "Compare the drop that the gradient predicts with attacks.",
    ),
    "dimension": Command(
        "evaluation:DimensionRequest",
        "experiments:dimension",
        "evaluate",
        "Train at several image sizes; compare gradient norms.",
        resumable=True,
    ),
    "layers": Command(
        "study:LayersRequest",
        "checkpoints:layers",
        "look",
        "List a network's layers and their units.",
        session=("download", "arch", "as_json"),
    ),
    "import": Command(
        "training:ImportRequest",
        "checkpoints:import_",
        "files",
        "Convert a foreign checkpoint file; no code of it is run.",
        session=("download", "as_json"),
    ),
    "list": Command(
        "study:ListRequest",
        "catalogues:list_",
        "look",
        "List attacks, data, models, recipes; describe one of them.",
        session=("as_json",),
    ),
}

__all__ = ["COMMANDS", "Command", "MissingFileError", "ParameterError", "Request", "request_class"]


def request_class(command: str) -> type[Request]:
    """The request of a command; imports neither torch nor the command's function.

    >>> request_class("attack")(models=("mnist-k8",), attacks=("pgd",), steps=7)
    AttackRequest(models=("mnist-k8",), attacks=("pgd",), steps=7)
    """
    module, _, name = COMMANDS[command].request.partition(":")
    found: type[Request] = getattr(import_module(f"vizrobust.requests.{module}"), name)
    return found


def __getattr__(name: str) -> Any:
    """The classes of `request`, imported on first use: the program's help needs the table alone."""
    if name not in ("MissingFileError", "ParameterError", "Request"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("vizrobust.requests.request"), name)
