"""What a unit does: its activations on natural images, for which classes and in which words, and the logits without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.features.exemplars import BATCH_SIZE
from vizrobust.intervals import auc_interval, auc_of_ranks, mcnemar, mean_interval
from vizrobust.models import LOGITS, ActivationReader, evaluating
from vizrobust.models.forward import logits_of, predicted_classes, without_normalization
from vizrobust.models.layers import edited, on_units, views
from vizrobust.models.probing import HEADS
from vizrobust.requests.request import parts_of
from vizrobust.rng import Streams, seeded

BINS = 32
HEAT_SIDE = 32  # pixels of a heat map, whatever the layer's map
SAME = 1e-4  # gradients that differ by less than this share of the largest are one: the classes depend on the unit linearly
Shape = tuple[int, int, int]


def unit_activations(
    net: nn.Module, layer: str, images: Split, *, shape: Shape, compute: Compute, progress: Callable[[int], object] | None = None
) -> Tensor:
    """(n, units) float32: how much each image excites each unit of a layer, the mean over its map; ``ValueError`` for no numbers.

    >>> from vizrobust.data import head, load
    >>> from vizrobust.models import architecture
    >>> net = architecture("small_cnn", (1, 8, 8), 10)()
    >>> unit_activations(net, "conv1", head(load("digits").val, 3), shape=(1, 8, 8), compute=Compute("cpu")).shape
    torch.Size([3, 16])
    """
    rows = []
    for places, maps in layer_maps(net, layer, images, shape=shape, compute=compute):
        rows.append(maps if maps.dim() == 2 else maps.mean((2, 3)))
        if progress is not None:
            progress(len(places))
    return finite(torch.cat(rows), layer, "so its units have no activity")


def layer_maps(
    net: nn.Module,
    layer: str,
    images: Split,
    index: Tensor | None = None,
    *,
    shape: Shape,
    compute: Compute,
    size: int = BATCH_SIZE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(places in `index`, these images' activations in float32 on the CPU), in batches of `size`; `index` None is all images."""
    compute = compute.in_fp32()
    compute.place(net)
    reading = ActivationReader.of(net, shape, [layer])
    for places, count in full_batches(len(images if index is None else index), size):
        batch = images.take(places if index is None else index[places])
        # A network that draws random numbers draws the same ones in every run.
        with evaluating(net), torch.no_grad(), seeded(int(places[0]), compute.device):
            maps = reading(net, compute.images(batch))[layer].float().cpu()
        yield places[:count], maps[:count]


def finite(values: Tensor, layer: str, therefore: str) -> Tensor:
    """The values of a layer as they are; ``ValueError`` that ends as `therefore` says where some are not finite."""
    if not values.isfinite().all():
        raise ValueError(f"layer {layer!r} gives values that are not finite numbers, {therefore}; see its weights")
    return values


def sparsity(activations: Tensor) -> Tensor:
    """(n, units) -> (units,): lifetime sparsity of the positive part, 0 where all images excite a unit alike, 1 for one image.

    Vinje & Gallant 2000. A unit that no image excites has none: NaN.

    >>> sparsity(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 5.0]])).tolist()
    [0.0, 1.0]
    """
    positive, n = activations.clamp_min(0).double(), len(activations)
    share = positive.mean(0).square() / positive.square().mean(0)
    return ((1 - share) / (1 - 1 / n)).float()


def class_aucs(activations: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(n, units), (n,) -> (units, classes): how well a unit's activation tells images of a class from all others.

    The area under the ROC curve: the probability that an image of the class excites the unit more than an image of another
    class, ties halved; .5 is chance. NaN for a class that has no image, or has all.

    >>> class_aucs(torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 1.0]]), torch.tensor([0, 1, 0]), 2).tolist()
    [[1.0, 0.0], [0.75, 0.25]]
    """
    from scipy.stats import rankdata

    ranks = rankdata(activations.numpy(), axis=0)
    found = torch.full((activations.shape[1], classes), torch.nan, dtype=torch.float64)
    for number in range(classes):
        mine = labels == number
        if bool(mine.any()) and not bool(mine.all()):
            found[:, number] = torch.from_numpy(auc_of_ranks(ranks, mine.numpy()))
    return found


def histogram(values: Tensor, bins: int = BINS) -> tuple[float, float, list[int]]:
    """The range of values (n,) and how many of them are in each of its equal bins.

    >>> histogram(torch.tensor([0.0, 1.0, 1.0, 4.0]), bins=2)
    (0.0, 4.0, [3, 1])
    """
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return low, high, [len(values)]
    return low, high, [int(count) for count in torch.histc(values, bins, low, high)]


@dataclass(frozen=True)
class ClassEffects:
    """How each class's logit changes with each unit: `values` (units, classes), the gradient summed over the unit's map.

    It is the mean over images; `linear` where it is the same for all of them: then these are weights.
    """

    values: Tensor = field(repr=False)
    linear: bool


def class_effects(net: nn.Module, layer: str, images: Tensor, *, shape: Shape, compute: Compute) -> ClassEffects | None:
    """The gradient of every logit with respect to every unit of a layer; images are (N, C, H, W) in [0, 1].

    None for the logits themselves, for tokens and heads, and where the logits do not depend on the layer.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    >>> found = class_effects(net, "1", torch.rand(5, 1, 2, 2), shape=(1, 2, 2), compute=Compute("cpu"))
    >>> torch.allclose(found.values, net[2].weight.T), found.linear
    (True, True)
    """
    view = None if layer == LOGITS else views(net, shape, [layer])[layer]
    if view is None or view.number is not None or view.source != parts_of(layer).layer or view.source.endswith(HEADS):
        return None
    compute = compute.in_fp32()
    compute.place(net)
    changes: list[Tensor] = []

    def added(_module: nn.Module, _inputs: object, output: object) -> object:
        if changes or not isinstance(output, Tensor):
            return None
        changes.append(torch.zeros_like(output).requires_grad_())
        return output + changes[0]

    handle = without_normalization(net).get_submodule(view.source).register_forward_hook(added)
    try:
        with evaluating(net):
            logits = logits_of(net(compute.images(images)))
            if not changes:
                return None
            grads = []
            for of_class in logits.sum(0):
                found = torch.autograd.grad(of_class, changes, retain_graph=True, allow_unused=True)
                grad = next(iter(found), None)
                if grad is None:
                    return None
                maps = view.gradient(grad).float()
                grads.append((maps if maps.dim() == 2 else maps.sum((2, 3))).cpu())
    finally:
        handle.remove()
    each = torch.stack(grads, -1)  # (N, units, classes)
    spread = float((each.amax(0) - each.amin(0)).max())
    return ClassEffects(each.mean(0), spread <= SAME * float(each.abs().max()))


def heat_maps(
    net: nn.Module, layer: str, wanted: Mapping[int, Sequence[int]], images: Split, *, shape: Shape, compute: Compute
) -> dict[int, Tensor]:
    """unit -> (k, side, side) in [0, 1]: where each of its `wanted` images (indices in the split) excites it.

    The positive part of the unit's map, over its largest value among these images, scaled to the image without moving it.
    Empty for layers without positions.

    >>> from vizrobust.data import load
    >>> from vizrobust.models import architecture
    >>> net = architecture("small_cnn", (1, 8, 8), 10)()
    >>> heat_maps(net, "conv1", {3: [0, 5]}, load("digits").val, shape=(1, 8, 8), compute=Compute("cpu"))[3].shape
    torch.Size([2, 32, 32])
    """
    needed = sorted({index for some in wanted.values() for index in some})
    of_image: dict[int, list[int]] = {}
    for unit, some in wanted.items():
        for one in some:
            of_image.setdefault(one, []).append(unit)
    found: dict[tuple[int, int], Tensor] = {}
    for places, maps in layer_maps(net, layer, images, torch.tensor(needed), shape=shape, compute=compute):
        if maps.dim() != 4 or maps.shape[2] * maps.shape[3] == 1:
            return {}
        for place, map_ in zip(places.tolist(), maps, strict=True):
            found |= {(unit, needed[place]): map_[unit] for unit in of_image[needed[place]]}
    heat = {}
    for unit, some in wanted.items():
        stack = torch.stack([found[unit, image] for image in some]).clamp_min(0)
        scaled = torch.nn.functional.interpolate(stack[:, None], (HEAT_SIDE, HEAT_SIDE), mode="bilinear")[:, 0]
        heat[unit] = scaled / scaled.max().clamp_min(1e-12)
    return heat


ACTIVE = 0.2  # an image excites a unit if it excites it more than all but this share of the images by which words are chosen
LIMIT = 0.7  # the lower end of the area's interval must be above it
# Strings of random letters for each word. A network that knows no word takes each text for as good as any other, so the best of
# all is a word in one case of 20.
NONSENSE, MOST_NONSENSE = 19, 2000
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class UnitLabel:
    """The word that fits a unit best on one half of the images, and how well it predicts the unit on the other half.

    `chosen_auc` is the area under the ROC curve by which it was chosen, the largest of all words and so too large;
    `nonsense_auc` is the largest of all strings of random letters there. `auc` with `low` and `high`, its 95 % interval, are of
    `n` held-out images, of which `active` excite the unit. `word` is the unit's `label` only if `low` is above `LIMIT` and no
    such string fits as well.
    """

    word: str
    chosen_auc: float
    nonsense_auc: float
    auc: float
    low: float
    high: float
    active: int
    n: int

    @property
    def label(self) -> str | None:
        return self.word if self.low > LIMIT and self.chosen_auc > self.nonsense_auc else None


def nonsense(words: Sequence[str], seed: int = 0) -> tuple[str, ...]:
    """Texts in the shape of the words with random letters: 19 for each word, at most 2,000, none of them a word of the list.

    >>> nonsense(["a dog", "cat"])[:4]
    ('c jie', 'ecw', 'i nom', 'bcc')
    """
    count = min(NONSENSE * len(words), MOST_NONSENSE)
    longest = max(map(len, words))
    letters = Streams(seed, range(2 * count), "nonsense").integers(len(LETTERS), longest).tolist()
    made = (
        "".join(
            LETTERS[number] if letter.isalnum() else letter
            for letter, number in zip(words[place % len(words)], row, strict=False)
        )
        for place, row in enumerate(letters)
    )
    return tuple(text for text in dict.fromkeys(made) if text not in words)[:count]


def unit_labels(activity: Tensor, similarity: Tensor, words: Sequence[str], seed: int = 0) -> list[UnitLabel | None]:
    """A word for each unit, from its `activity` (n, units) and the `similarity` (n, texts) of the same images to texts.

    The first texts are the `words`, the others nonsense. The images are halved at random by `seed`. An image counts as exciting a
    unit if its activity is above the upper fifth's border on the first half, where the word with the largest area under the ROC
    curve is chosen; it is tested on the second. None for a unit that no image, or every one, of a half excites.

    >>> activity = torch.arange(200.0)[:, None]
    >>> similarity = torch.stack([activity[:, 0] % 7, activity[:, 0].square()], 1)
    >>> (found,) = unit_labels(activity, similarity, ["stripes", "dogs"])
    >>> found.word, found.auc, found.label
    ('dogs', 1.0, 'dogs')
    """
    from scipy.stats import rankdata

    order = Streams(seed, ["images"], "halves for labels").permutation(len(activity))[0]
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    ranks = rankdata(similarity[first].numpy(), axis=0)
    found: list[UnitLabel | None] = []
    for unit in range(activity.shape[1]):
        values = activity[:, unit].double()
        border = torch.quantile(values[first], 1 - ACTIVE) if len(first) else 0.0
        excited = (values > border).numpy()
        chosen, held_out = excited[first], excited[second]
        if _constant(chosen) or _constant(held_out):
            found.append(None)
            continue
        areas = auc_of_ranks(ranks, chosen)
        best, others = int(np.argmax(areas[: len(words)])), areas[len(words) :]
        auc = float(auc_of_ranks(rankdata(similarity[second, best].numpy()), held_out))
        active, n = int(held_out.sum()), len(held_out)
        noise = float(others.max()) if len(others) else 0.0
        interval = auc_interval(auc, active, n - active)
        found.append(UnitLabel(words[best], float(areas[best]), noise, auc, *interval, active, n))
    return found


def _constant(values: np.ndarray) -> bool:
    return bool(values.all() or not values.any())


@dataclass(frozen=True)
class ClassEffect:
    """What a change does to the n images of one class: to their accuracy, and to the mean of their own logit, after - before.

    The intervals are of 95 %: Newcombe's for the accuracy (see `mcnemar`), Student's for the logit (None for one image). An
    image with logits that are not finite is not right, and in no mean of logits, which is None where none is left.
    """

    name: str
    n: int
    before: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    logit: float | None
    logit_low: float | None
    logit_high: float | None


def logits_with(
    net: nn.Module, layer: str, unit: int | None, images: Split, *, change: str = "zero", value: float = 0.0, shape: Shape,
    compute: Compute,
) -> Tensor:  # fmt: skip
    """(n, classes) float32 on the CPU: the logits while one unit of a layer is changed at every position; None changes nothing.

    `change` ``zero`` sets the unit to 0, ``mean`` to `value`, its mean over images, and ``scale`` multiplies it by `value`.

    >>> from vizrobust.data import ArraySplit
    >>> net, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), ArraySplit(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    >>> logits_with(net, "1", 2, images, shape=(1, 2, 2), compute=Compute("cpu"))[:, 2].tolist()
    [0.0, 0.0]
    """
    compute = compute.in_fp32()
    compute.place(net)
    by = {"zero": torch.zeros_like, "mean": lambda x: torch.full_like(x, value), "scale": lambda x: value * x}[change]
    found = []
    view = views(net, shape, [layer])[layer]
    with evaluating(net), torch.no_grad(), edited(net, view, on_units(view, () if unit is None else (unit,), by)):
        for index, count in full_batches(len(images), BATCH_SIZE):
            with seeded(int(index[0]), compute.device):
                found.append(net(compute.images(images.take(index)))[:count].float().cpu())
    return torch.cat(found)


def defined(*logits: Tensor) -> Tensor:
    """(n,) bool: whether all logits (n, classes) of an image are finite in each of the passes.

    >>> defined(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[0.0, float("nan")], [2.0, 3.0]])).tolist()
    [False, True]
    """
    return torch.stack([one.isfinite().all(1) for one in logits]).all(0)


def effects(before: Tensor, after: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[ClassEffect, ...]:
    """What the change from logits `before` to `after`, each (n, classes), does to every class that has images.

    >>> before, labels = torch.tensor([[2.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1])
    >>> [(one.name, one.accuracy, one.logit) for one in effects(before, before - torch.tensor([2.0, 0.0]), labels, ["a", "b"])]
    [('a', -1.0, -2.0), ('b', 0.0, 0.0)]
    """
    found = []
    for number, name in enumerate(classes):
        mine = labels == number
        if not bool(mine.any()):
            continue
        right, was = (predicted_classes(logits[mine]) == number for logits in (after, before))
        test = mcnemar(right, was)
        change = (after - before)[mine & defined(before, after), number].tolist()
        logit = mean_interval(change) if change else (None, None, None)
        found.append(ClassEffect(name, test.n, float(was.double().mean()), test.difference, test.ci_low, test.ci_high, *logit))
    return tuple(found)


def nearest_in_activity(activity: Tensor, unit: int, count: int) -> list[int]:
    """The `count` other units whose activity (units,) is nearest to that of a unit, by its ratio.

    >>> nearest_in_activity(torch.tensor([1.0, 8.0, 2.0, 4.0]), 1, 2)
    [3, 2]
    """
    sizes = activity.double().clamp_min(1e-12).log()
    order = (sizes - sizes[unit]).abs().argsort(stable=True).tolist()
    return [other for other in order if other != unit][:count]
