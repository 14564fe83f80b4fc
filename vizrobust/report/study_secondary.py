"""The secondary outcomes on a study's page: sparsity of attribution maps and effective number of features over K, and tables."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vizrobust.attribution import MEASURES
from vizrobust.report.study_data import Spread, StudyGroups
from vizrobust.report.study_figures import Steps, label_lines
from vizrobust.report.study_tables import CONTRASTS, mean_text, short
from vizrobust.report.style import COLORS, INK, MARKERS, QUIET, blank, house_style
from vizrobust.results import Table
from vizrobust.study.contrasts import ATTRIBUTION, FEATURES, Contrast, Outcome

TITLES = {
    "deletion": "deletion gain", "insertion": "insertion gain", "infidelity": "infidelity", "sensitivity": "sensitivity",
    "weights": "same as random weights", "gini": "sparsity (Gini)",
}  # fmt: skip
MEANING = (
    "Attribution maps of the predicted class, means over images. Deletion and insertion: probability gained over random orders "
    "of pixels; infidelity: the part of the logit's changes under hidden squares that the map does not tell; sensitivity: the "
    "largest relative change of the map under noise of .02; same as random weights: rank correlation with the map of a network "
    "with random weights; sparsity: 0 where all pixels count alike, near 1 for one pixel. Effective number of features: the "
    "participation ratio of the layer's covariance (Gao et al. 2017)."
)
WIDE, TALL = 4.5, 3.3
DOTTED, NEAR = (0, (1, 1.6)), "random weights"


def secondary_over_k(study: StudyGroups) -> Figure | None:
    """Sparsity of the maps of each method, and effective number of features, over K; None where neither was measured.

    Each training seed is a thin line, their mean a thick one. The network with random weights is a dotted line, or a number
    where it is far from the others.
    """
    measured = study.report.secondary_values
    panels = {
        "sparsity of attribution maps (Gini)": [one for one in measured if (one.kind, one.measure) == (ATTRIBUTION, "gini")],
        "effective number of features": [one for one in measured if one.kind == FEATURES],
    }
    panels = {title: outcomes for title, outcomes in panels.items() if outcomes}
    if not panels or not study.swept:
        return None
    with house_style():
        figure = blank((WIDE * len(panels), TALL), pad=0.1)
        for (title, outcomes), axes in zip(panels.items(), figure.subplots(1, len(panels), squeeze=False).flat, strict=True):
            _panel(axes, study, outcomes)
            axes.set_title(title, loc="left", fontsize=10.5, pad=8)
            axes.set_xlabel("attack steps K in training")
        return figure


def _panel(axes: Axes, study: StudyGroups, outcomes: list[Outcome]) -> None:
    steps, labels = Steps.of(study, baselines=False), []
    seeds = {str(row["name"]): row["seed"] for row in study.report.rows("checkpoints")}
    untrained = [name for group in study.groups if group.role == "random" for name in group.checkpoints]
    for index, outcome in enumerate(outcomes):
        values = {name: value for name, value in study.report.secondary_values[outcome].items() if value is not None}
        color = COLORS[index % len(COLORS)] if len(outcomes) > 1 else INK
        for seed in sorted(set(seeds.values())) if study.seeds > 1 else ():
            own = {group.name: Spread(values[name]) for group in study.swept for name in group.checkpoints
                   if seeds[name] == seed and name in values}  # fmt: skip
            steps.draw(axes, own, thin=True, color=color, linewidth=0.8, alpha=0.55, markersize=0)
        mean = {name: Spread(spread.mean) for name, spread in study.spreads(values).items()}
        steps.draw(axes, mean, color=color, marker=MARKERS[index % len(MARKERS)], linewidth=2.6)
        last = steps.last(mean)
        labels += [(last, method_name(outcome), color)] if last is not None else []
        for name in untrained:
            if name in values:
                _random_weights(axes, values[name], f", {method_name(outcome)}" if len(outcomes) > 1 else "", color)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.5, frameon=False, loc="best")
    steps.dress(axes, size=9)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    if outcomes[0].kind == FEATURES:
        axes.set_ylim(0)
    label_lines(axes, axes.get_xlim()[1], labels, 0.7 * TALL, size=8.5, width=20)


def _random_weights(axes: Axes, value: float, of: str, color: str) -> None:
    """The value of the network with random weights, as a line where it is near those of the others, else as a number."""
    low, high = axes.get_ylim()
    if low - (high - low) <= value <= high + (high - low):
        axes.axhline(value, color=color, linewidth=1, linestyle=DOTTED, zorder=1)
        known = axes.get_legend_handles_labels()[1]
        axes.plot([], [], color=QUIET, linewidth=1, linestyle=DOTTED, label="_" if NEAR in known else NEAR)
    else:
        axes.plot([], [], linestyle="none", label=f"{NEAR}{of}: {short(value)}")


def method_name(outcome: Outcome) -> str:
    """The method or layer of an outcome, as tables and figures call it.

    >>> [method_name(Outcome("attribution", "gini", of)) for of in ("SmoothGrad(samples=9)", "Saliency()")]
    ['SmoothGrad(samples=9)', 'Saliency']
    """
    return outcome.of.removesuffix("()")


def measure_title(outcome: Outcome) -> str:
    """What is measured, in words."""
    return "effective number of features" if outcome.kind == FEATURES else TITLES[outcome.measure]


def secondary_table(study: StudyGroups) -> Table | None:
    """The contrasts of every secondary outcome with their intervals over training seeds; None where none was measured."""
    found: dict[Outcome, dict[str, Contrast]] = {}
    for one in study.report.secondary:
        found.setdefault(one.outcome, {})[one.contrast.name] = one.contrast
    names = [name for name in CONTRASTS if any(name in mine for mine in found.values())]
    rows = [
        [measure_title(outcome), method_name(outcome), *(_estimate(found[outcome].get(name)) for name in names),
         " to ".join(map(str, sorted({len(one.per_seed) for one in found[outcome].values()})))]
        for outcome in sorted(found, key=_place)
    ]  # fmt: skip
    note = (
        f"{'. '.join(CONTRASTS[name] for name in names)}. In brackets 95 % t intervals over training seeds, not corrected for "
        "their number: descriptions, without a verdict."
    )
    return Table("Contrasts of the secondary outcomes", ("outcome", "of", *names, "training seeds"), rows, note) if rows else None


def _estimate(found: Contrast | None) -> str:
    if found is None or found.estimate is None:
        return "-"
    known = found.ci_low is not None and found.ci_high is not None
    return f"{short(found.estimate)} [{short(found.ci_low)}, {short(found.ci_high)}]" if known else short(found.estimate)


def _place(outcome: Outcome) -> int:
    """Tables go by measures, not by methods; features come last."""
    return [*MEASURES, outcome.measure].index(outcome.measure)


def secondary_values(study: StudyGroups) -> Table | None:
    """The mean over training seeds of every secondary outcome, by group; None where none was measured."""
    measured = study.report.secondary_values
    rows = []
    for outcome in sorted(measured, key=_place):
        series = study.spreads({name: value for name, value in measured[outcome].items() if value is not None})
        rows.append([measure_title(outcome), method_name(outcome), *(mean_text(series, group.name) for group in study.groups)])
    header = ("outcome", "of", *(group.label for group in study.groups))
    return Table("Secondary outcomes of every group", header, rows, MEANING) if rows else None
