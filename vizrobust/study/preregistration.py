"""prereg.json: what a study fixes before its first picture, and how a later run departs from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vizrobust.clarity import METRICS
from vizrobust.runs import Row, write_json
from vizrobust.study.contrasts import ATTRIBUTION, FEATURES, SECONDARY
from vizrobust.study.protocol import Plan

FILE = "prereg.json"
CONTRAST_TEXTS = {
    "H1": "mean over K >= 1 minus K = 0, for each training seed",
    "H2": "slope over log2 K among K >= 1, for each training seed: what 'grows with the number of steps' needs",
    "H3": "slope of clarity over accuracy under the strongest attack found among K >= 1, for each training seed",
}
RADIUS_TEXT = (
    "slope over log2 eps at the fixed K of the radius arm, for each training seed: whether a larger ball makes it clearer"
)
MASKED_TEXT = "masked minus K = 0, for each training seed: whether gradients that are hidden from one step show clearer pictures"
STANDARD_TEXT = (
    "mean over K >= 1 minus mean of K = 0, each over all its training seeds and without pairs (Welch's t interval): "
    "K = 0 has more of them"
)
EXCLUSIONS = (
    "a judge that identifies natural exemplars below twice chance, or ranks the random network above the natural reference",
    "a unit that never had a gradient (dead) in any compared checkpoint has no value there",
)
SMALLEST_EFFECT = "10 % of natural reference minus random network, over the range of K"
INFERENCE = (
    "one value for each K and training seed (mean over units and image seeds); 95 % t intervals over training seeds; "
    "Holm over the primary metrics; all qualified judges must agree in sign; fewer than 3 seeds: descriptive"
)

SECONDARY_TEXTS = {
    ATTRIBUTION: "for each method and measure the mean over the first explain_images test images, of maps of the predicted class",
    FEATURES: (
        "participation ratio of the covariance of the hidden layer's activations, over all places of the first feature_images "
        "test images"
    ),
    "inference": (
        "the contrasts over training seeds with 95 % t intervals, not corrected for their number; they are descriptions and have "
        "no verdict"
    ),
}


def content(
    plan: Plan, eps: Mapping[str, Any], checkpoints: Mapping[str, str], judges: Mapping[str, str], power: Sequence[Row] = (),
    encoder: str = "",
) -> dict[str, Any]:  # fmt: skip
    """What a preregistration fixes; `checkpoints` and `judges` map names to hashes of weights, `encoder`
    is the hash of the encoder's.

    `power` says what effect the seeds can see, by the spread of a pilot (`study.power.planned`).

    Its texts are data: a study that is resumed compares them with those that it wrote first.
    """
    return {
        "plan": repr(plan),
        "eps": dict(eps),
        "metrics": {
            metric.name: {"role": metric.role, "direction": metric.direction, "chance": metric.chance}
            for metric in METRICS.values()
        },
        "contrasts": {
            **CONTRAST_TEXTS,
            **({"H4": RADIUS_TEXT} if plan.radius_eps else {}),
            **({"H5": MASKED_TEXT} if plan.masked_eps else {}),
            **({"H6": STANDARD_TEXT} if (plan.standard_seeds or 0) > plan.seeds else {}),
        },
        "smallest_effect": SMALLEST_EFFECT,
        "inference": INFERENCE,
        "exclusions": list(EXCLUSIONS),
        "checkpoints": dict(checkpoints),
        "judges": dict(judges),
        **({"encoder": encoder} if encoder else {}),
        **({"power": list(power)} if power else {}),
        **({SECONDARY: _secondary(plan)} if plan.explain_images or plan.feature_images else {}),
    }


def _secondary(plan: Plan) -> dict[str, str]:
    asked = {ATTRIBUTION: plan.explain_images, FEATURES: plan.feature_images}
    return {name: text for name, text in SECONDARY_TEXTS.items() if asked.get(name, True)}


def sha256(written: Mapping[str, Any]) -> str:
    """The hash of a preregistration. The order of its keys does not matter.

    >>> sha256({"a": 1, "b": 2}) == sha256({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()


def register(folder: Path, now: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Write `now` if nothing was registered yet. Returns what was written first, and how `now` departs from it."""
    path = folder / FILE
    if not path.is_file():
        write_json(path, dict(now))
        return dict(now), []
    first: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(now))
    return first, [
        f"{key} was {_short(first.get(key))}, is now {_short(now.get(key))}"
        for key in dict.fromkeys([*first, *now])
        if first.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
