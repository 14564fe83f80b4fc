"""How the verdict's sentences put numbers, metrics and recipes into words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vizrobust.study.verdicts import Trend

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def explained(trend: Trend) -> str:
    """A trend's numbers and the reason for its verdict, on one line."""
    found = trend.contrast
    parts = [] if found.estimate is None else [f"{found.estimate:+.3g}"]
    if found.ci_low is not None:
        parts[0] += f" [{found.ci_low:+.3g}, {found.ci_high:+.3g}]"
    parts.append(f"{len(found.per_seed)} training seed{'s' if len(found.per_seed) != 1 else ''}")
    if found.left_out:
        parts.append(f"{len(found.left_out)} left out")
    if trend.p_holm is not None:
        parts.append(f"p = {trend.p_holm:.2g} after Holm")
    parts.append("no smallest effect known" if trend.smallest is None else f"smallest effect {trend.smallest:.3g}")
    if len(trend.judges) > 1:
        parts.append(f"positive for {sum(one > 0 for one in trend.judges.values())} of {len(trend.judges)} judges")
    return "; ".join([*parts, trend.why] if trend.why else parts)


def listed(entries: Sequence[Trend], say: Callable[[Trend], str]) -> str:
    """What is said of each entry and where it holds: what is the same for several is said once."""
    groups: dict[str, list[Trend]] = {}
    for trend in entries:
        groups.setdefault(say(trend), []).append(trend)
    if len(groups) == 1:
        return f"{next(iter(groups))} {everywhere(entries)}"
    return "; ".join(f"{text} for {where(group)}" for text, group in groups.items())


def everywhere(entries: Sequence[Trend]) -> str:
    recipes = list(dict.fromkeys(trend.series.recipe for trend in entries))
    metrics = list(dict.fromkeys(trend.series.metric for trend in entries))
    judges = {name for trend in entries for name in trend.judges}
    under = f"under {joined(recipes)}" if len(recipes) > 1 else f"under {recipes[0]} alone"
    by = {1: f"by {named(metrics[0])}", 2: "both primary metrics"}.get(
        len(metrics), f"all {counted(len(metrics))} primary metrics"
    )
    judged = {0: "", 1: ", one judge", 2: ", both judges"}.get(len(judges), f", all {counted(len(judges))} judges")
    return f"{under}, {by}{judged}"


def where(entries: Sequence[Trend]) -> str:
    by_metric: dict[str, list[str]] = {}
    for trend in entries:
        by_metric.setdefault(trend.series.metric, []).append(trend.series.recipe)
    by_recipes: dict[tuple[str, ...], list[str]] = {}
    for metric, recipes in by_metric.items():
        by_recipes.setdefault(tuple(recipes), []).append(named(metric))
    return " and ".join(f"{joined(metrics)} under {joined(recipes)}" for recipes, metrics in by_recipes.items())


def named(metric: str) -> str:
    return metric.replace("_", " ")


def counted(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def joined(words: Iterable[str]) -> str:
    """Words as a sentence lists them.

    >>> joined(["a"]), joined(["a", "b"]), joined("abc")
    ('a', 'a and b', 'a, b and c')
    """
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
