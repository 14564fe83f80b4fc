"""A study's figures of accuracy over K: attacks of all lengths, unforeseen attacks, corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from vizrobust.report.study_data import AccuracySeries, Group, Series, StudyGroups
from vizrobust.report.style import (
    COLORS,
    FAINT,
    INK,
    MARK,
    MARKERS,
    QUIET,
    accuracy_axes,
    blank,
    house_style,
    percent_upwards,
    spread_labels,
    wrapped,
)

K_AXIS = "attack steps K used in training (0: standard training)"
BAND = 0.16
ARM_PITCH = 0.8
LINE = 1.22  # of a label's size


@dataclass(frozen=True)
class Steps:
    """The x axis: the groups of the sweep over K at 0, 1, 2, …, the baselines after a gap that holds the lines' names."""

    swept: tuple[Group, ...]
    baselines: tuple[Group, ...]
    gap: float = 0.0

    @staticmethod
    def of(study: StudyGroups, baselines: bool = True, gap: float = 0.0) -> Steps:
        return Steps(study.swept, study.baselines if baselines else (), gap)

    @property
    def places(self) -> dict[str, float]:
        first_arm = len(self.swept) - 1 + self.gap + 0.9 if self.swept else 0.0
        places = {group.name: float(index) for index, group in enumerate(self.swept)}
        return places | {group.name: first_arm + ARM_PITCH * index for index, group in enumerate(self.baselines)}

    @property
    def end(self) -> float:
        """The position of the largest K."""
        return max(0, len(self.swept) - 1)

    def dress(self, axes: Axes, marked: bool = False, size: float = 10) -> None:
        """Ticks, limits, the line before the baselines, and with `marked` a tinted column behind masked checkpoints."""
        places = self.places
        names = [_tick(group) for group in self.swept] + [wrapped(group.label, 9) for group in self.baselines]
        axes.set_xticks(list(places.values()), names, fontsize=size)
        right = max([*places.values(), self.end + self.gap]) if places else 0.0
        axes.set_xlim(-0.35, right + 0.4)
        if self.swept and self.baselines:
            axes.axvline(places[self.baselines[0].name] - 0.5, color=FAINT, linewidth=0.8)
        for group in (*self.swept, *self.baselines) if marked else ():
            if group.masked:
                x = places[group.name]
                axes.axvspan(x - 0.3, x + 0.3, color=MARK, alpha=0.1, linewidth=0, zorder=0)
                count = f"\n{group.masked} of {len(group.checkpoints)}" if len(group.checkpoints) > 1 else ""
                axes.text(
                    x, 1.015, f"masked{count}", transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=7.5,
                    color=MARK, linespacing=1.1,
                )  # fmt: skip

    def draw(
        self, axes: Axes, series: Series, *, scale: float = 1.0, shift: float = 0.0, thin: bool = False, **look: Any
    ) -> None:
        """One series: a line with its band over K, marks with their intervals over the baselines."""
        places, color = self.places, look["color"]
        points = [(places[group.name], series[group.name]) for group in self.swept if group.name in series]
        xs, ys = [x for x, _ in points], [scale * spread.mean for _, spread in points]
        banded = [(x, scale * one.low, scale * one.high) for x, one in points if one.low is not None and one.high is not None]
        if not thin and len(banded) > 1:
            edge, low, high = (list(side) for side in zip(*banded, strict=True))
            axes.fill_between(edge, low, high, color=color, alpha=BAND, linewidth=0, zorder=2)
        elif not thin and banded:
            axes.vlines(*banded[0], color=color, linewidth=1.4, alpha=0.6, zorder=2)
        look = {"linewidth": 1.8, "markersize": 5.5, "clip_on": False, "zorder": 3, **look}
        axes.plot(xs, ys, **look)
        for group in self.baselines:
            if group.name not in series:
                continue
            x, spread = places[group.name] + shift, series[group.name]
            axes.plot([x], [scale * spread.mean], **{**look, "linestyle": "none"})
            if spread.low is not None and spread.high is not None and not thin:
                axes.vlines(x, scale * spread.low, scale * spread.high, color=color, linewidth=1.4, alpha=0.6, zorder=2)

    def last(self, series: Series) -> float | None:
        """The mean at the largest K."""
        there = [series[group.name].mean for group in self.swept if group.name in series]
        return there[-1] if there else None


def label_lines(
    axes: Axes, x: float, entries: Sequence[tuple[float, str, str]], tall: float, *, size: float = 9.5, width: int = 24,
    leader: float = 0.2, room: bool = True,
) -> None:  # fmt: skip
    """Texts (height, text, colour) right of `x`, at their heights or moved apart; the axes are about `tall` inches tall.

    A line of length `leader` joins each label with the height that it names; x and leader are in the axis's own units.
    Without `room` the layout makes none for the texts: they stand where a panel is missing.
    """
    low, high = axes.get_ylim()
    wanted = [100 * (y - low) / (high - low) for y, _, _ in entries]
    texts = [wrapped(text, width) for _, text, _ in entries]
    line = 100 * size * LINE / 72 / tall
    joint: Mapping[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 4}
    places = spread_labels(wanted, [line * (1 + text.count("\n")) for text in texts])
    for text, (_, _, color), here, there in zip(texts, entries, wanted, places, strict=True):
        axes.plot([x, x + leader], [here / 100, there / 100], color=color, linewidth=1.0, scalex=False, scaley=False, **joint)
        axes.text(
            x + 1.3 * leader,
            there / 100,
            text,
            fontsize=size,
            va="center",
            in_layout=room,
            linespacing=1.12,
            color=color,
            **joint,
        )


def _tick(group: Group) -> str:
    return str(group.k) if group.label == f"K = {group.k}" else wrapped(group.label, 9)


BLUE, RED, GREEN, AMBER = COLORS[:4]
LECTURE_RATIO = 0.5  # "roughly half" of the robust accuracy remains under an unforeseen attack
LEAST_FORESEEN = 0.1  # below this accuracy the ratio is dominated by chance
RATIO_AXIS = 1.6
NAMED_UP_TO = 8
PALEST, TALL = 0.42, 3.4


def accuracy_over_k(study: StudyGroups) -> Figure | None:
    """Accuracy over K, clean, under FGSM, PGD of several lengths and the strongest attack found; None where unmeasured.

    Bands are the Wilson interval of one training seed or the range of several; masked checkpoints have a tinted background.
    """
    series = study.accuracies("clean", "fgsm", "pgd", "strongest")
    if not series or not (study.swept or study.baselines):
        return None
    lengths = [one.label for one in series if one.kind == "pgd"]
    with house_style():
        figure, axes = accuracy_axes()
        steps = Steps.of(study, gap=1.7)
        for index, one in enumerate(series):
            shift = 0.09 * (index - (len(series) - 1) / 2)
            steps.draw(axes, one.spreads, scale=100, shift=shift, color=_color(one, lengths), marker=_marker(one, lengths))
        steps.dress(axes, marked=True)
        axes.set_xlabel(K_AXIS)
        ends = [(steps.last(one.spreads), one.label, _color(one, lengths)) for one in series]
        label_lines(
            axes, steps.end + 0.12, [(100 * y, label, color) for y, label, color in ends if y is not None], TALL, width=18
        )
        return figure


def unforeseen_over_k(study: StudyGroups) -> Figure | None:
    """Accuracy under attacks seen in training and unforeseen ones over K, and its ratio beside the lecture's "roughly half"."""
    attacks = study.accuracies("unforeseen")
    foreseen = study.accuracy_of("strongest")
    if not attacks or not foreseen or not study.swept:
        return None
    with house_style():
        figure = blank((9.0, 4.0), pad=0.1)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1))
        steps = Steps.of(study, baselines=False)
        percent_upwards(left)
        for one in attacks:
            steps.draw(left, one.spreads, scale=100, thin=True, color=_pale(AMBER, 0.5), linewidth=0.9)
        lines = ((foreseen, "strongest seen in training", BLUE, "o"), (unforeseen_mean(study), "mean of unforeseen", AMBER, "s"))
        labels = []
        for values, label, color, marker in lines:
            spreads = study.ranges(values)
            steps.draw(left, spreads, scale=100, color=color, marker=marker)
            labels.append((100 * (steps.last(spreads) or 0.0), label, color))
        steps.dress(left)
        labels += _named(steps, attacks, AMBER)
        label_lines(left, left.get_xlim()[1], labels, 2.9, size=8.5, width=16)
        left.set_ylabel("accuracy (%)")
        left.set_title("accuracy", loc="left", fontsize=10.5, pad=10)
        _ratio(right, steps, study)
        figure.supxlabel(K_AXIS, fontsize=10)
        return figure


def corruptions_over_k(study: StudyGroups) -> Figure | None:
    """Accuracy under each common corruption over K, their mean, and clean accuracy."""
    corruptions = study.accuracies("corruption")
    if not corruptions or not study.swept:
        return None
    means = study.ranges(corrupted_mean(study))
    with house_style():
        figure, axes = accuracy_axes()
        steps = Steps.of(study, gap=2.2)
        for one in corruptions:
            steps.draw(axes, one.spreads, scale=100, thin=True, color=_pale(GREEN, 0.45), linewidth=0.9, markersize=0)
        labels = _named(steps, corruptions, GREEN)
        for spreads, label, color, marker in [
            *((one.spreads, "clean", QUIET, "o") for one in study.accuracies("clean")),
            (means, f"mean of {len(corruptions)} corruptions", GREEN, "s"),
        ]:
            steps.draw(axes, spreads, scale=100, color=color, marker=marker)
            labels.append((100 * (steps.last(spreads) or 0.0), label, color))
        steps.dress(axes)
        axes.set_xlabel(K_AXIS)
        label_lines(axes, steps.end + 0.12, labels, TALL, size=8.5, width=22)
        return figure


def ratios(study: StudyGroups) -> Series:
    """Mean accuracy under unforeseen attacks, divided by that under the strongest attack seen in training.

    One value per training seed; checkpoints with less than 10 % under the latter have none.
    """
    foreseen, mean = study.accuracy_of("strongest"), unforeseen_mean(study)
    shares = {name: mean[name] / foreseen[name] for name in mean if foreseen.get(name, 0.0) >= LEAST_FORESEEN}
    return study.ranges(shares)


def unforeseen_mean(study: StudyGroups) -> dict[str, float]:
    """Checkpoint -> its mean accuracy over the unforeseen attacks."""
    return _mean_over_rows(study, "unforeseen")


def corrupted_mean(study: StudyGroups) -> dict[str, float]:
    """Checkpoint -> its mean accuracy over the corruptions."""
    return _mean_over_rows(study, "corruption")


def _mean_over_rows(study: StudyGroups, kind: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in study.report.rows("accuracy"):
        if row["kind"] == kind and row.get("accuracy") is not None:
            found.setdefault(str(row["checkpoint"]), []).append(float(row["accuracy"]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _ratio(axes: Axes, steps: Steps, study: StudyGroups) -> None:
    found = ratios(study)
    axes.axhline(LECTURE_RATIO, color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    steps.draw(axes, found, color=INK, marker="D", clip_on=True)
    steps.dress(axes)
    top = min(RATIO_AXIS, max([1.0, *(spread.high or spread.mean for spread in found.values())]))
    axes.set_ylim(0, 1.08 * top)
    for group in steps.swept:
        if group.name in found and found[group.name].mean > 1.08 * top:
            axes.text(
                steps.places[group.name], 1.05 * top, f"↑ {found[group.name].mean:.1f}", fontsize=8.5, ha="center", va="top"
            )
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    axes.spines["left"].set_visible(False)
    axes.text(-0.3, LECTURE_RATIO + 0.02, "the lecture: “roughly half”", fontsize=8.5, color=QUIET, va="bottom")
    axes.set_title("unforeseen / seen in training", loc="left", fontsize=10.5, pad=10)
    left_out = [group.label for group in steps.swept if group.name not in found]
    if left_out:
        axes.text(
            0.02, 0.03, f"no ratio below {100 * LEAST_FORESEEN:.0f} % accuracy under the seen attack: {', '.join(left_out)}",
            transform=axes.transAxes, fontsize=7.5, color=QUIET,
        )  # fmt: skip


def _named(steps: Steps, series: Sequence[AccuracySeries], color: str) -> list[tuple[float, str, str]]:
    """The thin lines' labels, unless there are too many to read."""
    if len(series) > NAMED_UP_TO:
        return []
    ends = [(steps.last(one.spreads), one.label) for one in series]
    return [(100 * y, label, _pale(color, 0.25)) for y, label in ends if y is not None]


def _color(one: AccuracySeries, lengths: Sequence[str]) -> str:
    """Attacks of more steps in a darker blue."""
    fixed: Mapping[str, str] = {"clean": QUIET, "fgsm": AMBER, "strongest": RED}
    if one.kind != "pgd":
        return fixed[one.kind]
    return _pale(BLUE, PALEST * (1 - (lengths.index(one.label) + 1) / len(lengths)))


def _marker(one: AccuracySeries, lengths: Sequence[str]) -> str:
    fixed = {"clean": "o", "fgsm": "s", "strongest": "X"}
    return fixed.get(one.kind) or ("^", "v", "D", "P", *MARKERS)[lengths.index(one.label) % 8]


def _pale(color: str, share: float) -> str:
    """Mix a colour with the given share of white.

    >>> _pale("#000000", 0.5)
    '#808080'
    """
    red, green, blue = (part + (1 - part) * share for part in to_rgb(color))
    return to_hex((red, green, blue))
