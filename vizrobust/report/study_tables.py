"""The tables of a study's page: verdicts, estimates, accuracies, clarity, matching, judges and confounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vizrobust.report.study_data import METRIC_ROLES, Entry, Series, Spread, StudyGroups
from vizrobust.report.study_figures import ratios, unforeseen_mean
from vizrobust.report.words import key_word
from vizrobust.results import Table, percent

CONTRASTS = {
    "H1": "H1: adversarial against standard training (mean of K ≥ 1 minus K = 0)",
    "H2": "H2: more attack steps (slope over log2 K among K ≥ 1)",
    "H3": "H3: clarity against accuracy under the strongest attack (among K ≥ 1)",
    "H4": "H4: a larger radius in training (slope over log2 eps at a fixed K)",
    "H5": "H5: masked gradients (one step of a large radius in training) against none",
    "H6": "H6: adversarial training against K = 0 over all its training seeds (Welch's interval, without pairs)",
}


def contrasts(study: StudyGroups) -> Table | None:
    """The verdict of each contrast over all recipes and primary metrics."""
    entries = study.report.facts("verdict").get("by_contrast") or ()
    rows = [[CONTRASTS.get(e["contrast"], str(e["contrast"])), str(e["layer"]), str(e["verdict"])] for e in entries]
    return Table("Verdicts over recipes and primary metrics", ("contrast", "layer", "verdict"), rows) if rows else None


def verdicts(study: StudyGroups, roles: Sequence[str]) -> Table | None:
    """Metric, recipe and contrast with the verdict over all judges, the span of their estimates, and the reason."""
    rows = []
    role = {metric["name"]: metric["role"] for metric in study.report.rows("metrics")}
    entries = study.report.facts("verdict").get("by_metric") or ()
    for entry in entries:
        if role.get(entry["metric"], "primary") not in roles:
            continue
        layer = entry.get("layer") or next(iter(study.layers), None)
        keys = ("metric", "recipe", "contrast")
        mine = [
            one for one in study.report.rows("trends") if all(one[key] == entry[key] for key in keys) and one["layer"] == layer
        ]
        mine = [one for one in mine if one.get("judge") not in study.report.excluded_judges]
        estimates = [one["estimate"] for one in mine if one.get("estimate") is not None]
        lows, highs = ([one[key] for one in mine if one.get(key) is not None] for key in ("ci_low", "ci_high"))
        rows.append(
            [
                study.title(entry["metric"]),
                str(entry["recipe"]),
                f"{entry['contrast']} {layer}" if len(study.layers) > 1 else str(entry["contrast"]),
                str(entry["verdict"]),
                _span(estimates, estimates),
                _span(lows, highs),
                str(entry.get("why") or ""),
            ]
        )
    header = ("metric", "recipe", "contrast", "verdict", "estimate", "95 % interval", "why")
    told = [text for name, text in CONTRASTS.items() if name in {entry["contrast"] for entry in entries}]
    note = ". ".join(told) + ". Of several judges, the smallest and the largest estimates and bounds are given."
    return _repeats_once(Table(f"Verdicts: {', '.join(roles)} metrics", header, rows, note)) if rows else None


def _repeats_once(table: Table) -> Table:
    """The table with a verdict that is the same in all of several rows said once, in the note."""
    column = list(table.header).index("verdict")
    said = {row[column] for row in table.rows}
    if len(table.rows) < 3 or len(said) > 1:
        return table
    header, *rows = ([cell for place, cell in enumerate(row) if place != column] for row in (table.header, *table.rows))
    return replace(table, header=header, rows=rows, note=f"All of them: {said.pop()}. {table.note}".strip())


def estimates(study: StudyGroups, roles: Sequence[str]) -> Table | None:
    """Every estimate with its interval, a row per judge."""
    rows = []
    for entry in sorted(
        (e for e in study.report.rows("trends") if e["role"] in roles), key=lambda e: METRIC_ROLES.index(e["role"])
    ):
        bounds = entry.get("ci_low"), entry.get("ci_high")
        interval = "-" if None in bounds else f"{short(bounds[0])} to {short(bounds[1])}"
        estimate, smallest, p = entry.get("estimate"), entry.get("smallest_effect"), entry.get("p_holm")
        rows.append(
            [
                study.title(entry["metric"]),
                str(entry["recipe"]),
                str(entry.get("judge") or "-"),
                str(entry["layer"]),
                str(entry["contrast"]),
                short(estimate),
                interval,
                short(smallest),
                short(p if p is not None else entry.get("p")),
                str(len(entry.get("per_seed") or ())),
                str(entry["verdict"]),
                str(entry.get("shape") or "-"),
            ]
        )
    header = (
        "metric",
        "recipe",
        "judge",
        "layer",
        "contrast",
        "estimate",
        "95 % interval",
        "smallest effect",
        "p (Holm)",
        "seeds",
        "verdict",
        "shape",
    )
    note = (
        "t intervals over training seeds; smallest effect of interest: 10 % of natural minus random network over the range of K."
    )
    return _repeats_once(Table(f"Estimates: {', '.join(roles)} metrics", header, rows, note)) if rows else None


def accuracies(study: StudyGroups) -> Table | None:
    """Groups by attacks."""
    series = study.accuracies("clean", "fgsm", "pgd", "strongest", "unforeseen", "corruption")
    rows = [[group.label, *(_share(one.spreads.get(group.name)) for one in series)] for group in study.groups]
    note = "Percent; in brackets the Wilson 95 % interval of one training seed, or the range of several."
    return Table("Accuracies", ("", *(one.label for one in series)), rows, note) if series else None


def masked(study: StudyGroups) -> list[str]:
    """One sentence for each checkpoint whose gradients were diagnosed and are not sound."""
    found = []
    for checkpoint in study.report.rows("checkpoints"):
        diagnosis = checkpoint.get("masked") or {}
        if diagnosis.get("verdict") not in (None, "sound"):
            why = f" ({diagnosis['why']})" if diagnosis.get("why") else ""
            found.append(f"{checkpoint.get('label') or checkpoint['name']}: {diagnosis['verdict']}{why}")
    return found


def power(study: StudyGroups) -> Table | None:
    """What the preregistration planned of each interval, and how wide it came out; None where nothing was planned."""
    rows = study.report.rows("power")
    if not rows:
        return None
    body = [
        [row["contrast"], study.title(row["metric"]), row["recipe"], f"{row['detectable']:.3g}", f"{row['half_width']:.3g}",
         "-" if row["achieved"] is None else f"{row['achieved']:.3g}"]
        for row in rows
        if row["detectable"] is not None
    ]  # fmt: skip
    header = ["contrast", "metric", "recipe", "effect seen with 80 % power", "half width planned", "half width achieved"]
    return Table("Planned and achieved", header, body, "planned by the spread of a pilot's training seeds") if body else None


def clarity(study: StudyGroups) -> Table | None:
    """Every mean over units: metric, recipe, judge, control and layer by groups and references."""
    keys = dict.fromkeys(
        (row["metric"], row["recipe"], row.get("judge"), row.get("control"), row["layer"]) for row in study.report.rows("clarity")
    )
    names = ("natural", "random network", "before optimization")
    rows = []
    for metric, recipe, judge, control, layer in keys:
        series = study.clarity(metric, recipe, judge, layer, control)
        lines = [short(study.report.reference(name, metric, recipe, judge, layer, control)) for name in names]
        rows.append(
            [
                study.title(metric),
                recipe,
                judge or "-",
                control or "-",
                layer,
                *(mean_text(series, g.name) for g in study.groups),
                *lines,
            ]
        )
    header = ("metric", "recipe", "judge", "control", "layer", *(group.label for group in study.groups), *names)
    return Table("Clarity of every group", header, rows, "Means over units, image seeds and training seeds.") if rows else None


def activation_and_distance(study: StudyGroups) -> Table | None:
    """The activation that the pictures reached and their distance from the start image."""
    rows = []
    for recipe, layer in dict.fromkeys((row["recipe"], row["layer"]) for row in study.report.rows("excitation")):
        mine = [row for row in study.report.rows("excitation") if (row["recipe"], row["layer"]) == (recipe, layer)]
        columns = [
            study.spreads({row["checkpoint"]: row[key] for row in mine if row.get(key) is not None})
            for key in ("ratio", "radius")
        ]
        rows += [
            [group.label, recipe, layer, *(mean_text(series, group.name) for series in columns)]
            for group in study.groups
            if any(group.name in series for series in columns)
        ]
    header = ("", "recipe", "layer", "activation / largest natural", "excitation radius (L2)")
    note = "The excitation radius follows from L2 robustness, so it says little about clarity by itself."
    return Table("Activation and distance", header, rows, note) if rows else None


def matching(study: StudyGroups) -> Table | None:
    """How well the hidden units of each group correlate with the units that they are matched with."""
    entries = study.report.rows("matching")
    columns = [study.spreads({row["checkpoint"]: row[key] for row in entries}) for key in ("drawn", "quality", "chance")]
    rows = [
        [group.label, *(mean_text(series, group.name) for series in columns)]
        for group in study.groups
        if group.name in columns[0]
    ]
    header = ("", "drawn units", "all units of the layer", "by chance")
    note = (
        "Mean correlation, on the same natural images, with the matched unit of the network of the same training seed and "
        "the fewest attack steps. Matching picks the best pairs, so chance is above 0, and it favours what networks share."
    )
    return Table("Match quality", header, rows, note) if rows else None


def paths(study: StudyGroups) -> Table | None:
    """How similarly pictures and natural images of a class excite each layer, by group."""
    rows = []
    for recipe in study.recipes:
        mine = [row for row in study.report.rows("path_similarity") if row["recipe"] == recipe]
        series = study.spreads({row["checkpoint"]: row["value"] for row in mine if row.get("value") is not None})
        for group in study.groups:
            of = [row for row in mine if row["checkpoint"] in group.checkpoints]
            flagged = sum(bool(row.get("flagged")) for row in of)
            why = "; ".join(dict.fromkeys(str(row["why"]) for row in of if row.get("why")))
            note = f"flagged: {flagged} of {len(of)}" if flagged else why or "-"
            rows += [[group.label, recipe, str(of[0].get("layer") or "-"), mean_text(series, group.name), note]] if of else []
    header = ("", "recipe", "layer", "path similarity", "note")
    below = (
        "1: pictures excite the layer as natural images of their class do; 0: as images of other classes do (Geirhos et al. "
        "2023). Low values are flagged: such pictures may come from a circuit that natural images do not use."
    )
    return Table("Path similarity", header, rows, below) if rows else None


def unforeseen(study: StudyGroups) -> Table | None:
    """Accuracy under attacks seen in training and under unforeseen attacks, and their ratio, by group."""
    columns = (study.ranges(study.accuracy_of("strongest")), study.ranges(unforeseen_mean(study)))
    share = ratios(study)
    rows = [
        [group.label, *(_share(series.get(group.name)) for series in columns), mean_text(share, group.name)]
        for group in study.groups
        if all(group.name in series for series in columns)
    ]
    header = ("", "strongest seen in training", "mean of unforeseen", "ratio")
    return (
        Table("Attacks seen in training and unforeseen attacks", header, rows, "Percent, with the range over training seeds.")
        if rows
        else None
    )


def confounds(study: StudyGroups) -> Table | None:
    """What varies with K besides clarity and robustness."""
    labels = {group.name: group.label for group in study.groups}
    rows = [
        [
            labels.get(row["group"], str(row["group"])),
            percent(row.get("clean")),
            short(row.get("delta_linf")),
            short(row.get("delta_l2")),
            _count(row.get("gradient_passes")),
            _count(row.get("steps")),
        ]
        for row in study.report.rows("confounds")
    ]
    header = ("", "clean accuracy", "mean |δ|∞ / eps", "mean |δ|₂", "gradient passes", "attack steps")
    return Table("Confounds", header, rows) if rows else None


def judges(study: StudyGroups) -> Table | None:
    rows = [
        [
            str(row["name"]),
            str(row.get("kind") or "-"),
            percent(row.get("clean")),
            percent(row.get("natural_identification")),
            str(row.get("disqualified") or "-"),
        ]
        for row in study.report.judges_and_encoder
    ]
    header = ("judge", "kind", "clean accuracy", "identifies exemplars", "excluded")
    return Table("Judges", header, rows) if rows else None


def checkpoints(study: StudyGroups) -> list[Mapping[str, Any]]:
    """Each checkpoint's name with pairs of texts."""
    found: list[Mapping[str, Any]] = []
    for entry in study.report.rows("checkpoints"):
        pairs = {
            "name": entry["name"],
            "role": key_word(str(entry.get("role") or "")),
            "training": entry.get("training"),
            "epochs": entry.get("epochs"),
            "gradients": _diagnosis(entry),
            "weights (sha256)": entry.get("weights_sha256"),
        }
        label = str(entry.get("label") or entry["name"])
        found.append({"label": label, "pairs": [(key, str(value)) for key, value in pairs.items() if value not in (None, "")]})
    return found


def _diagnosis(entry: Entry) -> str:
    diagnosis = entry.get("masked") or {}
    return ": ".join(str(diagnosis[key]) for key in ("verdict", "why") if diagnosis.get(key))


def _share(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    interval = "" if spread.low is None or spread.high is None else f" ({100 * spread.low:.1f}–{100 * spread.high:.1f})"
    return f"{100 * spread.mean:.1f}{interval}"


def _span(lows: Sequence[float], highs: Sequence[float]) -> str:
    """From the smallest of `lows` to the largest of `highs`.

    >>> _span([0.1, 0.2], [0.3, 0.25]), _span([0.5], [0.5]), _span([], [])
    ('0.1 to 0.3', '0.5', '-')
    """
    if not lows or not highs:
        return "-"
    low, high = short(min(lows)), short(max(highs))
    return low if low == high else f"{low} to {high}"


def mean_text(series: Series, group: str) -> str:
    """The mean of a group to three figures, ``-`` where it has none."""
    return short(series[group].mean) if group in series else "-"


def short(value: float | None) -> str:
    """Three figures, or ``-``.

    >>> short(0.12345), short(None), short(12345.6), short(-0.5)
    ('0.123', '-', '12,346', '−0.5')
    """
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−", 1) if value < 0 else text


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
