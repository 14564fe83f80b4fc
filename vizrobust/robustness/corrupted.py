"""Accuracy under common corruptions, with the mean corruption error relative to AlexNet's."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.intervals import share, wilson
from vizrobust.models import evaluating
from vizrobust.models.forward import PerImageNoise
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.accuracy import CLEAN
from vizrobust.robustness.corruptions import COMMON, CORRUPTIONS, SEVERITIES
from vizrobust.robustness.evaluation import BATCH_SIZE
from vizrobust.spec import lookup

Row = dict[str, Any]

OWN_FROST = "frost: own texture"
NO_COLOUR = "one channel has no colour to saturate"


def corrupted(
    net: nn.Module,
    images: Split,
    compute: Compute,
    corruptions: Sequence[str] = tuple(COMMON),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    done: Collection[tuple[str, int]] = (),
) -> Iterator[Row]:
    """Accuracy on the images as they are (``clean``, severity 0), then under each corruption at each severity.

    One row each, as soon as it is known: ``corruption, severity, n, accuracy, ci_low, ci_high, note, seconds``, with
    Wilson's 95 % interval; of a network that predicts one class for all clean images that row names it as
    ``constant_prediction``. What is `done` already, as (corruption, severity), is left out. An image draws the same
    random numbers at every severity and for every network. Raises ``ValueError`` for an unknown corruption or
    severity, or no images, before anything is computed.

    >>> from vizrobust.data import ArraySplit
    >>> images = ArraySplit(torch.rand(2, 1, 28, 28), torch.tensor([3, 3]))
    >>> rows = corrupted(nn.Flatten(), images, Compute("cpu"), ["contrast"], [5])
    >>> [(row["corruption"], row["severity"], row["n"]) for row in rows]
    [('clean', 0, 2), ('contrast', 5, 2)]
    """
    if not len(images):
        raise ValueError("there are no images to corrupt; choose a split that has some")
    chosen = [(name, lookup(CORRUPTIONS, name, "corruption")) for name in corruptions]
    for severity in severities:
        if severity not in SEVERITIES:
            raise ValueError(f"no severity {severity!r}; there are: {', '.join(map(str, SEVERITIES))}")
    conditions = [(corruption.__name__, severity) for _, corruption in chosen for severity in severities]
    wanted = [one for one in [(CLEAN, 0), *conditions] if one not in done]
    processes = compute.processes
    return processes.interleave(_row(net, images, compute, *one, seed, batch_size) for one in processes.shard(wanted))


@dataclass(frozen=True)
class CorruptionError:
    """Errors under the common corruptions that were evaluated, as fractions (an mCE of 0.767 is written 76.7 %).

    `by_type` is each corruption's error averaged over the severities, `mean` their mean: the plain, unnormalised mean
    corruption error. `mce` divides each type's error by the baseline's before the mean; `relative_mce` does so with
    what each error exceeds the clean one by. Both are None without a baseline, or where its errors leave nothing to
    divide by. `note` says what keeps the numbers from being the published ones.
    """

    mean: float
    clean: float
    by_type: dict[str, float]
    mce: float | None
    relative_mce: float | None
    note: str


def mean_corruption_error(rows: Iterable[Row], baseline_rows: Iterable[Row] | None = None) -> CorruptionError:
    """The mean corruption error of rows of `corrupted` (Hendrycks and Dietterich 2019, section 4.2).

    With E the errors and B a baseline's, mCE = mean over types of (sum of E over severities) / (sum of B over
    severities), and relative mCE the same of E - E_clean and B - B_clean. The four extra corruptions do not count.
    The baseline is the rows of a reference checkpoint; compare only numbers with the same one.

    Raises ``ValueError`` for rows without a clean one, without a common corruption, with gaps in the severities, or
    with a baseline that lacks some of them.

    >>> clean = {"corruption": "clean", "severity": 0, "accuracy": 1.0}
    >>> fog = [{"corruption": "fog", "severity": severity, "accuracy": 0.4} for severity in (1, 2)]
    >>> mean_corruption_error([clean, *fog]).by_type
    {'fog': 0.6}
    """
    errors, clean = _errors(rows, "the rows")
    types = [name for name in COMMON if name in errors]
    if not types:
        raise ValueError("the rows hold none of the common corruptions, so there is no mean; evaluate some of COMMON")
    severities = sorted({severity for name in types for severity in errors[name]})
    for name in types:
        if sorted(errors[name]) != severities:
            raise ValueError(f"{name} has severities {sorted(errors[name])} where others have {severities}; evaluate the rest")
    by_type = {name: sum(errors[name].values()) / len(severities) for name in types}
    mce = relative = None
    notes = [OWN_FROST] if "frost" in types else []
    if len(types) < len(COMMON):
        notes.append(f"{len(types)} of {len(COMMON)} types")
    if severities != list(SEVERITIES):
        notes.append(f"severities {', '.join(map(str, severities))} alone")
    if baseline_rows is not None:
        base_errors, base_clean = _errors(baseline_rows, "the baseline")
        lacking = [f"{name} {severity}" for name in types for severity in severities if severity not in base_errors.get(name, {})]
        if lacking:
            raise ValueError(f"the baseline has no {', '.join(lacking[:3])}; evaluate it on the same corruptions")
        base = {name: sum(base_errors[name][severity] for severity in severities) / len(severities) for name in types}
        mce = _ratio([by_type[name] for name in types], [base[name] for name in types])
        relative = _ratio([by_type[name] - clean for name in types], [base[name] - base_clean for name in types])
        if mce is None or relative is None:
            notes.append("the baseline loses nothing under some type")
    return CorruptionError(sum(by_type.values()) / len(types), clean, by_type, mce, relative, "; ".join(notes))


def _row(net: nn.Module, images: Split, compute: Compute, name: str, severity: int, seed: int, batch_size: int) -> Row:
    began = time.perf_counter()
    compute.place(net)
    network, hits, channels, seen = PerImageNoise(net), [], 0, set[int]()
    for index, count in full_batches(len(images), batch_size):
        x, y = images.take(index), images.labels[index]
        if name != CLEAN:
            x = CORRUPTIONS[name](x, severity, Streams(seed, index.tolist(), "corruption"))
        network.noise_from(partial(Streams, seed, index.tolist(), name))
        with evaluating(net), compute.autocast(), torch.no_grad(), seeded(seed, compute.device):
            logits = network(compute.images(x)).cpu()
        hits.append(((logits.argmax(1) == y) & logits.isfinite().all(1))[:count])
        seen |= set(logits.argmax(1)[:count].tolist())
        channels = x.shape[1]
    correct = torch.cat(hits)
    low, high = wilson(int(correct.sum()), len(correct))
    note = {"frost": OWN_FROST, "saturate": NO_COLOUR if channels == 1 else ""}.get(name, "")
    return {
        "corruption": name,
        "severity": severity,
        "n": len(correct),
        "accuracy": share(correct),
        "ci_low": low,
        "ci_high": high,
        "note": note,
        **({"constant_prediction": seen.pop()} if name == CLEAN and len(seen) == 1 and not correct.all() else {}),
        "seconds": round(time.perf_counter() - began, 2),
    }


def _errors(rows: Iterable[Row], whose: str) -> tuple[dict[str, dict[int, float]], float]:
    """The errors by corruption and severity, and the clean error."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["corruption"], {})[row["severity"]] = 1 - row["accuracy"]
    clean = found.pop(CLEAN, None)
    if clean is None:
        raise ValueError(f"{whose} hold no {CLEAN!r} accuracy; evaluate the images as they are too")
    return found, clean[0]


def _ratio(errors: list[float], base: list[float]) -> float | None:
    """The mean of the ratios; None where the baseline leaves nothing to divide by."""
    if min(base) <= 0:
        return None
    return sum(error / by for error, by in zip(errors, base, strict=True)) / len(base)
