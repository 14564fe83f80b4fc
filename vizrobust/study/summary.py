"""The verdict of a study in plain sentences, which list every result and select none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vizrobust.clarity import METRICS
from vizrobust.models import LOGITS
from vizrobust.study.contrasts import CONTRASTS, Contrast
from vizrobust.study.verdicts import DESCRIPTIVE, INCONCLUSIVE, NOT_SUPPORTED, PRIMARY, SUPPORTED, ContrastResult

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def explained(result: ContrastResult) -> str:
    """A result's numbers and the reason for its verdict, on one line."""
    found = result.contrast
    parts = [] if found.estimate is None else [_number(found, found.estimate)]
    if found.ci_low is not None and found.ci_high is not None:
        parts[0] += f" [{_number(found, found.ci_low)}, {_number(found, found.ci_high)}]"
    parts.append(f"{len(found.per_seed)} training seed{'s' if len(found.per_seed) != 1 else ''}")
    if found.left_out:
        parts.append(f"{len(found.left_out)} left out")
    if result.p_holm is not None:
        parts.append(f"p = {result.p_holm:.2g} after Holm")
    parts.append("smallest effect unknown" if result.smallest_effect is None else f"smallest effect {result.smallest_effect:.3g}")
    if len(result.judges) > 1:
        parts.append(
            f"positive for {sum(found.sign_of(one) > 0 for one in result.judges.values())} of {len(result.judges)} judges"
        )
    return "; ".join([*parts, result.why] if result.why else parts)


def _number(found: Contrast, value: float) -> str:
    return f"{value if found.sign_of(value) else 0.0:+.3g}"


def listed(entries: Sequence[ContrastResult], say: Callable[[ContrastResult], str], judges: str = "") -> str:
    """What `say` says of each entry and where it holds; what several share is said once.

    `judges` is appended where all entries share one text.
    """
    groups: dict[str, list[ContrastResult]] = {}
    for result in entries:
        groups.setdefault(say(result), []).append(result)
    if len(groups) == 1:
        return f"{next(iter(groups))} {everywhere(entries)}{judges}"
    return "; ".join(f"{text} for {where(group, entries)}" for text, group in groups.items())


def everywhere(entries: Sequence[ContrastResult]) -> str:
    """Under which recipes and by which metrics, where it is all of them."""
    recipes, metrics = recipes_of(entries), metrics_of(entries)
    under = f"under {joined(recipes)}" if len(recipes) > 1 else f"under {recipes[0]} alone"
    return f"{under}, {'by ' + named(metrics[0]) if len(metrics) == 1 else f'{every(len(metrics))} primary metrics'}"


def where(part: Sequence[ContrastResult], whole: Sequence[ContrastResult]) -> str:
    """Some of the entries: which metric under which recipe."""
    by_metric: dict[str, list[str]] = {}
    for result in part:
        by_metric.setdefault(result.series.metric, []).append(result.series.recipe)
    by_recipes: dict[tuple[str, ...], list[str]] = {}
    for metric, recipes in by_metric.items():
        by_recipes.setdefault(tuple(recipes), []).append(metric)
    metrics = len(metrics_of(whole))
    return ", ".join(
        f"{every(metrics) + ' metrics' if len(names) == metrics > 1 else joined(map(named, names))} under {joined(recipes)}"
        for recipes, names in by_recipes.items()
    )


def recipes_of(entries: Sequence[ContrastResult]) -> list[str]:
    return list(dict.fromkeys(result.series.recipe for result in entries))


def metrics_of(entries: Sequence[ContrastResult]) -> list[str]:
    return list(dict.fromkeys(result.series.metric for result in entries))


def judges_of(entries: Sequence[ContrastResult]) -> list[str]:
    return list(dict.fromkeys(name for result in entries for name in result.judges))


def every(count: int) -> str:
    """``both`` for two, ``all three`` for three: stands before a plural."""
    return "both" if count == 2 else f"all {counted(count)}"


def named(metric: str) -> str:
    """What a sentence calls a metric."""
    return METRICS[metric].label if metric in METRICS else metric.replace("_", " ")


def counted(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def joined(words: Iterable[str]) -> str:
    """Words as a sentence lists them.

    >>> joined(["a"]), joined(["a", "b"]), joined("abc")
    ('a', 'a and b', 'a, b and c')
    """
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


PRIOR, METRIC = "depends on the prior", "depends on the metric"
# What each contrast claims, also after "that" and "whether".
CLAIMS = {
    "H1": "adversarially trained networks' pictures are clearer than the standard network's",
    "H2": "clarity grows with the number of attack steps among K ≥ 1",
    "H3": "clarity goes with accuracy under the strongest attack among K ≥ 1",
    "H4": "clarity grows with the radius of the training attack at a fixed K",
    "H5": "the pictures of networks with masked gradients are clearer than the standard network's",
    "H6": "adversarially trained networks' pictures are clearer than those of all standard networks, compared without pairs",
}
# What a sign means where nothing can be inferred.
SIGNS = {
    "H1": ("adversarial against standard training", "clearer", "less clear"),
    "H2": ("over the number of attack steps among K ≥ 1", "rising", "falling"),
    "H3": ("over accuracy under the strongest attack among K ≥ 1", "rising", "falling"),
    "H4": ("over the radius of the training attack at a fixed K", "rising", "falling"),
    "H5": ("masked gradients against standard training", "clearer", "less clear"),
    "H6": ("adversarial training against all standard networks", "clearer", "less clear"),
}
CONTROL_PHRASES = {
    "contrast": "with contrast matched",
    "blur": "after a blur of 1 pixel",
    "equal-excitation": "at equal excitation",
    "matched": "with hidden units matched across networks",
}


@dataclass(frozen=True)
class Verdict:
    """What a reader sees first: `sentences`, and `overall` in one line.

    `by_contrast` maps a layer and a contrast to the verdict over all recipes and primary metrics. `by_metric` holds the
    results of the mean over judges, secondary metrics included.
    """

    sentences: tuple[str, ...]
    overall: str
    by_contrast: Mapping[tuple[str, str], str]
    by_metric: tuple[ContrastResult, ...]

    def row(self) -> dict[str, Any]:
        """The `verdict` of report.json."""
        return {
            "sentences": list(self.sentences),
            "overall": self.overall,
            "by_contrast": [
                {"layer": layer, "contrast": contrast, "verdict": found}
                for (layer, contrast), found in self.by_contrast.items()
            ],
            "by_metric": [
                {"metric": one.series.metric, "role": one.series.role, "recipe": one.series.recipe,
                 "layer": one.series.layer, "contrast": one.contrast.name, "verdict": one.verdict, "why": explained(one)}
                for one in self.by_metric
            ],
        }  # fmt: skip


def verdict(contrast_results: Sequence[ContrastResult], excluded: Mapping[str, str] | None = None) -> Verdict:
    """The verdict from all results of a study; `excluded` maps judges to the reason why they are excluded.

    For each layer and contrast, over both recipes and all primary metrics: the one verdict they share; else *depends
    on the prior* if a metric is supported under one recipe and not supported under another; else *depends on the
    metric* if one metric is supported and another is not; else *inconclusive*.

    >>> verdict([]).overall
    'no verdict'
    """
    over_judges = [result for result in contrast_results if result.series.judge is None]
    plain = [result for result in over_judges if result.series.control is None]
    primary = [result for result in plain if result.series.role == PRIMARY]
    layers = sorted(dict.fromkeys(result.series.layer for result in primary), key=lambda layer: layer != LOGITS)
    found: dict[tuple[str, str], str] = {}
    sentences: list[str] = []
    for layer in layers:
        about = "" if layers == [LOGITS] else ("Class units: " if layer == LOGITS else f"Units of {layer}: ")
        for contrast in CONTRASTS:
            entries = [result for result in primary if (result.series.layer, result.contrast.name) == (layer, contrast)]
            if entries:
                found[layer, contrast] = together(entries)
                sentences += [about + text for text in _sentences(contrast, found[layer, contrast], entries)]
    sentences += _on_the_natural_scale([one for one in plain if one.series.metric == "natural_equivalent"])
    sentences += _controls([result for result in over_judges if result.series.role == PRIMARY], found)
    sentences += [f"The judge {name} is excluded: {why}." for name, why in (excluded or {}).items()]
    if not primary:
        return Verdict(("There is no verdict: no primary metric has values to compare.",), "no verdict", {}, tuple(plain))
    scoped = _scope(primary)
    descriptive = set(found.values()) == {DESCRIPTIVE}
    sentences = [*scoped, *sentences] if descriptive else [*sentences, *scoped]
    return Verdict(tuple(sentences), _overall(found), found, tuple(plain))


def _on_the_natural_scale(entries: Sequence[ContrastResult]) -> list[str]:
    """H1 in units that a reader knows: the share of a natural image's structure."""
    said = []
    for result in entries:
        found = result.contrast
        if found.name == "H1" and found.estimate is not None:
            known = found.ci_low is not None and found.ci_high is not None
            bounds = f" [{found.ci_low:+.2f}, {found.ci_high:+.2f}]" if known else ""
            said.append(f"{found.estimate:+.2f}{bounds} under {result.series.recipe}")
    if not said:
        return []
    scale = "On the scale of natural images (0: phases scrambled, 1: a photograph)"
    return [f"{scale} adversarial minus standard training is {joined(said)}."]


def together(entries: Sequence[ContrastResult]) -> str:
    """One verdict from those of several recipes and metrics (see `verdict`)."""
    verdicts = {result.verdict for result in entries}
    if len(verdicts) == 1:
        return verdicts.pop()
    if not {SUPPORTED, NOT_SUPPORTED} <= verdicts:
        return INCONCLUSIVE
    for metric in {result.series.metric for result in entries}:
        if {SUPPORTED, NOT_SUPPORTED} <= {result.verdict for result in entries if result.series.metric == metric}:
            return PRIOR
    return METRIC


def _sentences(contrast: str, found: str, entries: Sequence[ContrastResult]) -> list[str]:
    claim, judges = CLAIMS[contrast], len(judges_of(entries))
    judged = f", {every(judges)} judges" if judges > 1 else ", one judge" if judges else ""
    if found == DESCRIPTIVE:
        about, more, less = SIGNS[contrast]
        said = listed(entries, lambda one: _sign(one, more, less), judged)
        return [f"{_capital(about)} ({contrast}): {said}."]
    if found == SUPPORTED:
        sentence = f"{_capital(claim)} ({contrast}): {listed(entries, lambda one: one.verdict, judged)}."
    elif found in (PRIOR, METRIC):
        sentence = f"Whether {claim} ({contrast}) {found}: {listed(entries, _reason_of)}."
    elif found == NOT_SUPPORTED:
        sentence = f"That {claim} ({contrast}) is not supported: {listed(entries, lambda one: one.why)}."
    else:
        sentence = f"That {claim} ({contrast}) is not shown: {listed(entries, _reason_of)}."
    shapes = [result for result in entries if result.dose_response_shape is not None]
    return [sentence, f"Shape over K ≥ 1: {listed(shapes, lambda one: one.dose_response_shape or '')}."] if shapes else [sentence]


def _reason_of(result: ContrastResult) -> str:
    return f"{result.verdict} ({result.why})" if result.why else result.verdict


def _sign(result: ContrastResult, more: str, less: str) -> str:
    sign = result.contrast.sign
    if not result.judges_agree:
        return "judges differ"
    return "no difference" if sign == 0 else (more if sign > 0 else less)


def _controls(primary: Sequence[ContrastResult], found: Mapping[tuple[str, str], str]) -> list[str]:
    """How the verdicts change under the controls, which remove what clarity does not mean."""
    same, sentences = [], []
    for control in dict.fromkeys(result.series.control for result in primary):
        if control is None or set(found.values()) == {DESCRIPTIVE}:
            continue
        changed = []
        for (layer, contrast), before in found.items():
            entries = [
                one for one in primary if (one.series.control, one.series.layer, one.contrast.name) == (control, layer, contrast)
            ]
            if entries and (now := together(entries)) != before:
                about = contrast if layer == LOGITS else f"{contrast} of units of {layer}"
                changed.append(f"{about} {now}" if now in (PRIOR, METRIC) else f"{about} is {now}")
        name = CONTROL_PHRASES.get(control, control)
        if changed:
            sentences.append(f"{_capital(name)} {joined(changed)}.")
        else:
            same.append(name)
    return [*([f"The verdicts are the same {joined(same)}."] if same else []), *sentences]


def _scope(primary: Sequence[ContrastResult]) -> list[str]:
    """How many training seeds the sentences rest on, and where some of them are missing."""
    counts = sorted({len(result.contrast.per_seed) for result in primary})
    said = joined([str(count) for count in counts])
    plural = "" if counts == [1] else "s"
    judges, metrics = len(judges_of(primary)), len(metrics_of(primary))
    mean = f", of the mean over {counted(judges)} judges" if judges > 1 else ""
    corrected = f", Holm over {counted(metrics)} primary metrics" if metrics > 1 else ""
    if all(result.verdict == DESCRIPTIVE for result in primary):
        sentences = [f"Descriptive: these checkpoints only ({said} training seed{plural}); the next sentences give signs alone."]
    else:
        sentences = [f"Inference is over {said} training seed{plural}: t intervals of 95 %{mean}{corrected}."]
    missing: dict[str, set[int]] = {}
    for result in primary:
        missing.setdefault(result.contrast.name, set()).update(result.contrast.left_out)
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for contrast, seeds in missing.items():
        if seeds:
            by_seeds.setdefault(tuple(sorted(seeds)), []).append(contrast)
    sentences += [
        f"{joined(names)} leave{'s' * (len(names) == 1)} out training seed{'s' * (len(seeds) > 1)} {joined(map(str, seeds))}, "
        "for which a value is missing."
        for seeds, names in by_seeds.items()
    ]
    if any(result.smallest_effect is None and result.verdict != DESCRIPTIVE for result in primary):
        sentences.append(
            "Where a reference is missing, the smallest effect of interest is unknown: the absence of an effect cannot be shown."
        )
    return sentences


def _overall(found: Mapping[tuple[str, str], str]) -> str:
    if set(found.values()) == {DESCRIPTIVE}:
        return "descriptive: these checkpoints only"
    layers = list(dict.fromkeys(layer for layer, _ in found))
    parts = []
    for layer in layers:
        said = ", ".join(f"{contrast} {text}" for (where, contrast), text in found.items() if where == layer)
        parts.append(said if layers == [LOGITS] else f"{'class units' if layer == LOGITS else f'units of {layer}'}: {said}")
    return "; ".join(parts)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
