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


def listed(entries: Sequence[Trend], say: Callable[[Trend], str], judges: str = "") -> str:
    """What is said of each entry and where it holds: what is the same for several is said once.

    `judges` is put behind what is the same everywhere.
    """
    groups: dict[str, list[Trend]] = {}
    for trend in entries:
        groups.setdefault(say(trend), []).append(trend)
    if len(groups) == 1:
        return f"{next(iter(groups))} {everywhere(entries)}{judges}"
    return "; ".join(f"{text} for {where(group, entries)}" for text, group in groups.items())


def everywhere(entries: Sequence[Trend]) -> str:
    """Under which recipes and by which metrics, where it is all of them."""
    recipes, metrics = recipes_of(entries), metrics_of(entries)
    under = f"under {joined(recipes)}" if len(recipes) > 1 else f"under {recipes[0]} alone"
    return f"{under}, {'by ' + named(metrics[0]) if len(metrics) == 1 else f'{every(len(metrics))} primary metrics'}"


def where(part: Sequence[Trend], whole: Sequence[Trend]) -> str:
    """Some of the entries: which metric under which recipe."""
    by_metric: dict[str, list[str]] = {}
    for trend in part:
        by_metric.setdefault(trend.series.metric, []).append(trend.series.recipe)
    by_recipes: dict[tuple[str, ...], list[str]] = {}
    for metric, recipes in by_metric.items():
        by_recipes.setdefault(tuple(recipes), []).append(metric)
    metrics = len(metrics_of(whole))
    return ", ".join(
        f"{every(metrics) + ' metrics' if len(names) == metrics > 1 else joined(map(named, names))} under {joined(recipes)}"
        for recipes, names in by_recipes.items()
    )


def recipes_of(entries: Sequence[Trend]) -> list[str]:
    return list(dict.fromkeys(trend.series.recipe for trend in entries))


def metrics_of(entries: Sequence[Trend]) -> list[str]:
    return list(dict.fromkeys(trend.series.metric for trend in entries))


def judges_of(entries: Sequence[Trend]) -> list[str]:
    return list(dict.fromkeys(name for trend in entries for name in trend.judges))


def every(count: int) -> str:
    """``both`` of two, else all of them: behind it stands what there is more than one of."""
    return "both" if count == 2 else f"all {counted(count)}"


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
