"""The functions that a Python user meets first: load, robust_accuracy, visualize, compare, explain, train, study and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizrobust.requests.evaluation import AttackRequest, MaskingRequest
from vizrobust.requests.pictures import CompareRequest, NeuronsRequest

if TYPE_CHECKING:
    from torch import nn

    from vizrobust.commands.certify import CertifyReport
    from vizrobust.commands.compare import Comparison
    from vizrobust.commands.explain import Explanations
    from vizrobust.commands.layer_units import FittedDictionary, Interventions
    from vizrobust.commands.masking import MaskingDiagnosis
    from vizrobust.commands.pictures import Pictures
    from vizrobust.commands.study import StudyResult
    from vizrobust.commands.train import TrainReport
    from vizrobust.models import Checkpoint
    from vizrobust.requests import Request
    from vizrobust.robustness import RobustAccuracy

    Model = str | Path | nn.Module | Checkpoint


def load(ref: str | Path, arch: str | None = None, download: bool = False) -> Checkpoint:
    """The checkpoint that `ref` names; it can be used wherever a model is asked for.

    `ref` is a built-in name, a file, a training run's folder, ``torchvision:NAME`` or ``timm:NAME``. `arch` names the
    user's code (``path.py:callable``) where the checkpoint needs it, `download` allows fetching published weights.
    Raises ``ValueError`` or ``FileNotFoundError`` with the next step.

    >>> import vizrobust as vr
    >>> vr.load("mnist-k8").info.attack_steps
    8
    """
    from vizrobust.models import load_checkpoint
    from vizrobust.plugins import split_code

    ref, own = split_code(str(ref))
    return load_checkpoint(ref, own or arch, download)


def robust_accuracy(
    model: Model, data: Any = None, attack: Any = "pgd", *, eps: float | None = None, norm: str | None = None,
    steps: int | None = None, images: int = 1000, split: str = "test", seed: int = 0, batch_size: int | None = None,
    precision: str = "fp32", until_width: float | None = None, exact: bool = False, device: str = "auto",
    out: str | Path | None = None,
) -> RobustAccuracy:  # fmt: skip
    """How many images a model classifies correctly under an attack, with a Wilson 95 % interval.

    `model` is a network of images in [0, 1] (its normalization inside), a checkpoint or a name. `data` is a data set, its
    name, a DataLoader, or a pair (x, y) with x (n, C, H, W) in [0, 1] and y (n,); None is the checkpoint's own. `attack` is
    a name, the text of a spec or an attack; `eps`, `norm` and `steps` change its fields, and without an eps the data
    set's usual one is taken. The first `images` of the `split` are attacked, or fewer where `until_width` points
    on either side are a narrow enough interval. `exact` does without the folding of BatchNorm, which changes outputs only
    by rounding. With `out` verdicts are kept in a run
    folder and continued there. Raises ``ValueError`` for images outside [0, 1] and for names that do not exist.

    >>> import vizrobust as vr
    >>> vr.robust_accuracy("mnist-k8", attack="fgsm", images=20)
    85.0 % (64.0 to 94.8) of 20 images under FGSM(ball=Linf(eps=0.3))
    """
    from vizrobust.commands.attack import attack as answer
    from vizrobust.commands.attack_modes import made
    from vizrobust.session import Session, answered

    request = AttackRequest(
        models=(model,), data=data, attacks=(attack,), eps=eps, norm=norm, steps=steps, images=images, split=split, seed=seed,
        batch_size=batch_size, precision=precision, until_width=until_width, exact=exact,
    )  # fmt: skip
    session = Session(out, device=device, memory=out is None)
    report = answered(answer, request, session)
    ((target, result),) = report.answer.evaluations
    return replace(result, remake=lambda: made(request, session, target, result), draw=report.figure)


def diagnose_masking(
    model: Model, data: Any = None, *, eps: float | None = None, norm: str | None = None, images: int = 500,
    most_images: int | None = None, transfer_from: str | None = None, trained_with: Any = None, effort: Any = None,
    thorough: bool = False, split: str = "test", seed: int = 0, batch_size: int | None = None, precision: str = "fp32",
    device: str = "auto", out: str | Path | None = None,
) -> MaskingDiagnosis:  # fmt: skip
    """Whether a model masks its gradients, so that its robust accuracy cannot be believed.

    `model` and `data` are as in `robust_accuracy`. `eps` and `norm` state the ball (None: that of training, else the data
    set's). The first `images` of the `split` are attacked, and up to `most_images` (None: five times as many) where the
    verdict depends on it. `trained_with` is the attack of training (``"none"``: standard training) of a model that does
    not record it, `transfer_from` another checkpoint to transfer attacks from, `effort` an `AttackBudget` or its text.
    With `thorough` AutoAttack counts among the attacks. The result has a `verdict` with its sentence, and the `checks`
    behind it. Raises ``ValueError`` where the model classifies no image correctly.

    >>> import vizrobust as vr
    >>> budget = "AttackBudget(steps=5, restarts=1, queries=5, noise_samples=2, probes=10)"
    >>> found = vr.diagnose_masking("mnist-k1", images=20, effort=budget)
    >>> found.verdict.name, found.verdict.masked
    ('masked: overfitted to its training attack', True)
    """
    from vizrobust.commands.masking import masking
    from vizrobust.session import Session, answered

    request = MaskingRequest(
        models=(model,), data=data, eps=eps, norm=norm, images=images, most_images=most_images, transfer_from=transfer_from,
        trained_with=trained_with, effort=effort, thorough=thorough, split=split, seed=seed, batch_size=batch_size,
        precision=precision,
    )  # fmt: skip
    session = Session(out, device=device, memory=out is None)
    (found,) = answered(masking, request, session).found
    return found


def visualize(
    model: Model, layer: str = "logits", units: Sequence[int] | str | None = None, recipe: Any = None, *,
    objective: Any = None, neuron: tuple[int, int] | None = None, seeds: int = 1, seed: int = 0, steps: int | None = None,
    size: int | None = None, data: Any = None, shape: tuple[int, int, int] | None = None, negative: bool = False,
    diversity: int = 1, start: str | None = None, batch_size: int | None = None, precision: str = "fp32", exact: bool = False,
    device: str = "auto",
) -> Pictures:  # fmt: skip
    """Images that excite units of a model as strongly as possible; in a notebook they show themselves.

    `layer` is a layer's name (`vizrobust layers`), `units` are its units (None: all of at most 20, else the first 16);
    `neuron` is one position (row, column) of its map instead of the mean over all. `objective` stands in place of both: an
    objective, its text, or a function (activations by layer, images, units) -> (N,) scores. `recipe` is a name, the text of
    a spec or a `Recipe` (None: plain, for images from 128 pixels on fourier);
    `steps` and `size` change its fields. `seeds` pictures of each unit start from different noise,
    from `seed` on, or from the image `start` (a file or DATA#index); `diversity` N makes N of each that differ in style. A
    bare network needs `shape` (C, H, W) or `data`; `exact` is as in `robust_accuracy`. Raises ``ValueError`` for a layer
    or unit that does not exist.

    >>> import vizrobust as vr
    >>> vr.visualize("mnist-k8", units=[3, 5], steps=2)
    2 pictures of units 3, 5 of logits in mnist-k8, recipe plain with 2 steps
    """
    from torch import inference_mode

    from vizrobust.commands.neurons import resolve
    from vizrobust.commands.pictures import Picture, Pictures
    from vizrobust.features import render
    from vizrobust.models import LOGITS
    from vizrobust.models.folding import folded_net
    from vizrobust.session import Session

    with inference_mode(False):  # a caller's own would leave no gradients
        session = Session(device=device, memory=True)
        checkpoint, loaded = session.pictured(model, data, shape)
        request = NeuronsRequest(
            models=(checkpoint,), data=loaded, layer=layer, units=units, recipe=recipe, objective=objective, neuron=neuron,
            seeds=seeds, seed=seed, steps=steps, size=size, negative=negative, diversity=diversity, start=start,
            batch_size=batch_size, precision=precision, exact=exact,
        )  # fmt: skip
        _, job = resolve(request, [checkpoint], loaded, session)
        plain = exact or precision != "fp32"
        net = checkpoint.net() if plain else folded_net(checkpoint, job.objective.layers)[0]
        done = render(
            net, job.objective, job.units, job.recipe, job.seeds, shape=checkpoint.info.input_shape,
            compute=session.compute(precision), sign=job.sign, start=job.start, batch_size=job.batch_size,
        )  # fmt: skip
        found = tuple(Picture(one, one.status(job.data_share)) for one in done)
    classes = checkpoint.info.classes if job.layer == LOGITS else ()
    return Pictures(found, checkpoint.name, job.layer, job.recipe, classes)


def compare(
    models: Sequence[Model], data: Any = None, *, layer: str = "logits", units: Sequence[int] | str | None = None,
    recipe: Any = "plain", seeds: int = 3, seed: int = 0, steps: int | None = None, size: int | None = None,
    attack: Any = "PGD(steps=50)", eps: float | None = None, norm: str | None = None, images: int = 1000,
    judge: str | tuple[str, ...] = (), judge_independent: bool = False, query_images: int = 1000,
    batch_size: int | None = None, precision: str = "fp32", exact: bool = False, device: str = "auto",
    out: str | Path | None = None,
) -> Comparison:  # fmt: skip
    """Models side by side: training, accuracy under an attack, feature images and their clarity by an outside judge.

    `models` are two or more networks of images in [0, 1], checkpoints or names; `data` is as for `robust_accuracy`. All are
    attacked on the same first `images` test images (0: not at all), and the others are tested against the first one
    (McNemar). `units` of `layer` are rendered by `recipe` from `seeds` different noises each. `judge` names the networks
    that judge their clarity on `query_images` held-out images (default: the data set's own; a note says where there is none);
    `judge_independent` states that they saw none of the models' training images;
    natural images and a random network are its references. The result shows tables and pictures in a notebook;
    ``.rows()`` are the numbers, ``.figure()`` is the sheet of all pictures for matplotlib, ``.image()`` as it
    is. With `out` everything is kept in a run folder and continued there. Raises ``ValueError`` for fewer than two
    different models.

    >>> import vizrobust as vr
    >>> vr.compare(["mnist-k0", "mnist-k8"], units=[3, 5], seeds=1, steps=2, images=20, query_images=50)
    Comparison of mnist-k0 and mnist-k8: 0.0 %, 70.0 % under PGD(steps=50, ball=Linf(eps=0.3))
    """
    from vizrobust.commands.compare import compare as answer
    from vizrobust.session import answered_with_files, several

    request = CompareRequest(
        models=tuple(models), data=data, layer=layer, units=units, recipe=recipe, seeds=seeds, seed=seed, steps=steps,
        size=size, attack=attack, eps=eps, norm=norm, images=images,
        judge=several(judge),
        judge_independent=judge_independent, query_images=query_images, batch_size=batch_size, precision=precision,
        exact=exact,
    )  # fmt: skip
    found: Comparison = answered_with_files(answer, request, out, device)
    return found


def explain(
    models: Model | Sequence[Model], data: Any = None, *, methods: Any = (), images: int = 16, device: str = "auto",
    out: str | Path | None = None, **parameters: Any,
) -> Explanations:  # fmt: skip
    """Which pixels the answers of one or more models depend on, by several methods, and what each map is worth.

    `models`, `data` and `out` are as for `compare`. `methods` are names, texts of specs or `Attribution` objects (none: all
    of ``vizrobust list attributions``). The first `images` are explained, for the class that the model predicts.
    `parameters` are the other fields of `requests.understanding.ExplainRequest`. ``.maps`` (images, H, W) are by model's
    name and method. Raises ``ValueError`` without captum, and where a method that is named cannot explain a model.

    >>> import vizrobust as vr
    >>> found = vr.explain("mnist-k8", methods="saliency", images=2)
    >>> found.maps["mnist-k8", "Saliency()"].shape
    torch.Size([2, 28, 28])
    """
    from vizrobust.commands.explain import explain as answer
    from vizrobust.requests.understanding import ExplainRequest
    from vizrobust.session import answered_with_files, several

    request = ExplainRequest(models=several(models), data=data, methods=several(methods), images=images, **parameters)
    found: Explanations = answered_with_files(answer, request, out, device)
    return found


def intervene(
    models: Model | Sequence[Model], layer: str, units: Sequence[int] | str | None = None, data: Any = None, *,
    change: str = "zero", images: int = 1000, device: str = "auto", out: str | Path | None = None, **parameters: Any,
) -> Interventions:  # fmt: skip
    """What becomes of every class's accuracy and logit when units of a layer are removed or scaled.

    `models`, `data` and `out` are as for `compare`, `layer` and `units` as for `visualize`. `change` sets a unit to
    ``zero`` or to its ``mean`` over the first `images`, or multiplies it (``scale``, by ``factor``); ``none`` only says what
    excites it. With ``clip=``, a reference or an `ImageTextEncoder`, and ``words=``, a file or the words, units get labels.
    `parameters` are the other fields of `requests.understanding.InterveneRequest`. Raises ``ValueError`` for a layer that
    cannot be changed.

    >>> import vizrobust as vr
    >>> vr.intervene("mnist-k8", "linear2", [3], images=50, controls=1).rows()[0]["classes"][3]["accuracy"]
    -1.0
    """
    from vizrobust.commands.layer_units import intervene as answer
    from vizrobust.requests.understanding import InterveneRequest
    from vizrobust.session import Session, answered, several

    request = InterveneRequest(
        models=several(models), layer=layer, units=units, data=data, change=change, images=images, **parameters
    )
    report: Interventions = answered(answer, request, Session(out, device=device, memory=out is None))
    return report


def certify(
    models: Model | Sequence[Model], data: Any = None, *, method: str = "smoothing", images: int = 100, device: str = "auto",
    out: str | Path | None = None, **parameters: Any,
) -> CertifyReport:  # fmt: skip
    """A radius for each image within which no change matters, beside the smallest change that an attack finds.

    `models`, `data` and `out` are as for `compare`. ``method="smoothing"`` certifies L2 radii of the network that votes
    over noise (of deviation ``sigma``, by ``samples`` votes, wrong with a probability of at most ``alpha``), ``"ibp"``
    L-inf radii of the network itself, by interval bounds. `parameters` are the other fields of
    `requests.understanding.CertifyRequest`. ``.found`` has the radii of each model. Raises ``ValueError`` where interval
    bounds do not know a layer.

    >>> import vizrobust as vr
    >>> report = vr.certify("mnist-k8", method="ibp", attack="none", images=3)
    >>> [round(radius, 3) for radius in report.found[0].radius.tolist()]
    [0.016, 0.014, 0.011]
    """
    from vizrobust.commands.certify import certify as answer
    from vizrobust.requests.understanding import CertifyRequest
    from vizrobust.session import Session, answered, several

    request = CertifyRequest(models=several(models), data=data, method=method, images=images, **parameters)
    report: CertifyReport = answered(answer, request, Session(out, device=device, memory=out is None))
    return report


def dictionary(
    model: Model, layer: str, out: str | Path, data: Any = None, *, method: str = "pca", units: int = 16, device: str = "auto",
    **parameters: Any,
) -> FittedDictionary:  # fmt: skip
    """Fit a dictionary of so many units to a layer and write it to `out`; ``LAYER:sae=OUT`` then is a layer of its units.

    `model` and `data` are as for `robust_accuracy`. `method` is ``"pca"``, ``"nmf"``, ``"topk"`` (an autoencoder whose ``k``
    largest units count) or ``"relu"`` (one whose codes cost ``l1``). `parameters` are the other fields of
    `requests.understanding.DictionaryRequest`. ``.dictionary`` is the dictionary, ``.quality`` what it is worth on test
    images. Raises ``ValueError`` where `out` holds something else.

    >>> from tempfile import mkdtemp
    >>> import vizrobust as vr
    >>> found = vr.dictionary("mnist-k8", "linear1", f"{mkdtemp()}/d.safetensors", units=3, images=50, held_out=50)
    >>> found.dictionary, found.quality.dead
    (Dictionary(3 units of 100 channels, linear), 0)
    """
    from vizrobust.commands.layer_units import dictionary as answer
    from vizrobust.requests.understanding import DictionaryRequest
    from vizrobust.session import Session, answered

    request = DictionaryRequest(model=model, layer=layer, out=str(out), data=data, method=method, units=units, **parameters)
    found: FittedDictionary = answered(answer, request, Session(device=device, memory=True))
    return found


def train(
    data: Any, arch: str | None = None, *, steps: int | Sequence[int] | None = None, attack: Any = None,
    out: str | Path | None = None, device: str = "auto", download: bool = False, wait: bool = False, **parameters: Any,
) -> TrainReport:  # fmt: skip
    """Train a network with `steps` attack steps K (0: standard training), in a folder; the same call continues.

    `data` is a data set, its name, a DataLoader or a pair (x, y); `arch` is a name (``vizrobust list archs``; None:
    small_cnn) or ``path.py:callable``. ``start=`` is a checkpoint to go on from, with a new head where the classes are
    others, ``freeze=`` are patterns of layers that stay. `attack` is a spec, its text, or several with ``mix=``. Several K,
    or ``seeds=``, are a sweep. `parameters` are the other fields of `requests.training.TrainRequest`, the options of
    ``vizrobust train``: ``eps``, ``method``, ``epochs``, ``batch_size``, ``lr``, ``seed`` and so on. `out` is the folder, by
    default ``runs/train-<hash>``. Raises ``ValueError`` that names the parameter.

    >>> from tempfile import mkdtemp
    >>> import vizrobust as vr
    >>> report = vr.train("digits", steps=0, epochs=1, watch=20, out=mkdtemp())
    >>> report.checkpoint.info.attack_steps
    0
    """
    from vizrobust.commands.train import train as answer
    from vizrobust.requests.training import TrainRequest
    from vizrobust.session import Session, answered, several

    tried = None if steps is None else several(steps)
    attacks = () if attack is None else several(attack)
    if arch is None and parameters.get("start") is None:
        arch = "small_cnn"
    request = TrainRequest(data=data, arch=arch, steps=tried, attacks=attacks, **parameters)
    session = Session(out, device=device, download=download, wait=wait, argv=_call("train", request))
    report: TrainReport = answered(answer, request, session)
    return report


def study(
    models: Sequence[Any] = (), data: str | None = None, *, quick: bool = False, out: str | Path | None = None,
    device: str = "auto", download: bool = False, wait: bool = False, **parameters: Any,
) -> StudyResult:  # fmt: skip
    """Whether feature images get clearer with more attack steps: train a sweep on `data`, or compare `models`.

    `quick` takes at most ten minutes. `parameters` are the other fields of `requests.study.StudyRequest`, the options of
    ``vizrobust study``: ``steps``, ``seeds``, ``eps``, ``baselines``, ``controls``, ``images`` and so on. The folder
    `out`, by default ``runs/study-<hash>``, can be left at any moment; the same call continues. Raises ``ValueError``
    that names the parameter.

    >>> import vizrobust as vr
    >>> vr.study(["mnist-k8"])
    Traceback (most recent call last):
    ValueError: a study compares two or more K, got K = 8; name checkpoints of other numbers of attack steps
    """
    from vizrobust.commands.study import study as answer
    from vizrobust.requests.study import StudyRequest
    from vizrobust.session import Session, answered

    request = StudyRequest(models=tuple(models), data=data, quick=quick, **parameters)
    session = Session(out, device=device, download=download, wait=wait, argv=_call("study", request))
    result: StudyResult = answered(answer, request, session)
    return result


def _call(name: str, request: Request) -> str:
    """The call as Python writes it, for run.json, pictures and reports."""
    return f"vizrobust.{name}{repr(request).removeprefix(type(request).__name__)}"
