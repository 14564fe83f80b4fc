"""All commands by name: the request that states one, and the function that answers it."""

from __future__ import annotations

from importlib import import_module

from vizrobust.requests.request import Command, MissingFileError, ParameterError, Request

# In the order of a person's path, as the program's help lists them.
COMMANDS: dict[str, Command] = {
    "neurons": Command("pictures:NeuronsRequest", "neurons:neurons", "look", resumable=True, parallel=True),
    "spritemap": Command("pictures:SpritemapRequest", "layer_sheets:spritemap", "look", resumable=True),
    "atlas": Command("pictures:AtlasRequest", "layer_sheets:atlas", "look", resumable=True),
    "microscope": Command("pictures:MicroscopeRequest", "microscope:microscope", "look", resumable=True),
    "compare": Command("pictures:CompareRequest", "compare:compare", "look", resumable=True, parallel=True),
    "study": Command("study:StudyRequest", "study:study", "study", resumable=True, parallel=True),
    "verify": Command("study:VerifyRequest", "study:verify", "study", session=("download", "device", "as_json", "quiet")),
    "gallery": Command("pictures:GalleryRequest", "pictures:gallery", "files", session=()),
    "trials": Command("study:TrialsRequest", "trials:trials", "study", session=("download", "arch", "as_json")),
    "rerender": Command(
        "pictures:RerenderRequest", "pictures:rerender", "files", session=("download", "arch", "device", "as_json")
    ),
    "invert": Command("pictures:InvertRequest", "reconstruct:invert", "look", resumable=True),
    "caricature": Command("pictures:CaricatureRequest", "reconstruct:caricature", "look", resumable=True),
    "accentuate": Command("pictures:AccentuateRequest", "reconstruct:accentuate", "look", resumable=True),
    "train": Command("training:TrainRequest", "train:train", "train", resumable=True, parallel=True),
    "judge": Command("training:JudgeRequest", "judge:judge", "train", resumable=True),
    "calibrate": Command("evaluation:CalibrateRequest", "experiments:calibrate", "evaluate", resumable=True),
    "attack": Command("evaluation:AttackRequest", "attack:attack", "evaluate", resumable=True, parallel=True),
    "masking": Command(
        "evaluation:MaskingRequest", "masking:masking", "evaluate", resumable=True, parallel=True, exits={False: 3, None: 4}
    ),
    "explain": Command("understanding:ExplainRequest", "explain:explain", "look", resumable=True),
    "intervene": Command("understanding:InterveneRequest", "intervene:intervene", "look", resumable=True),
    "dictionary": Command(
        "understanding:DictionaryRequest",
        "dictionary:dictionary",
        "look",
        session=("download", "arch", "device", "as_json", "quiet"),
    ),
    "certify": Command("understanding:CertifyRequest", "certify:certify", "evaluate", resumable=True),
    "first-order": Command("evaluation:FirstOrderRequest", "first_order:first_order", "evaluate"),
    "dimension": Command("evaluation:DimensionRequest", "experiments:dimension", "evaluate", resumable=True),
    "layers": Command("study:LayersRequest", "checkpoints:layers", "look", session=("download", "arch", "as_json")),
    "import": Command("training:ImportRequest", "checkpoints:import_", "files", session=("download", "as_json")),
    "list": Command("study:ListRequest", "catalogues:list_", "look", session=("as_json",)),
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
