"""The table of gallery/README.md: what the arms and controls of a study do to transfer, by judge and recipe.

python gallery/mnist-study/controls.py gallery/mnist-study/report.json
"""

# ruff: noqa: T201  a script that prints its table
import json
import sys
from pathlib import Path

from vizrobust.report.study_data import StudyGroups

GROUPS = ("k0", "noise", "k1", "k1-long", "fgsm", "fast", "k8-eps/4", "k8-eps/2", "k8", "k0-shuffled")

study = StudyGroups(json.loads(Path(sys.argv[1]).read_text()))
layer = study.layers[0]
print("| judge | recipe |", " | ".join(f"`{name}`" for name in GROUPS), "|")
print("|---" * (len(GROUPS) + 2) + "|")
for judge in study.judges("transfer", layer):
    for recipe in study.recipes:
        spreads = study.clarity("transfer", recipe, judge, layer)
        cells = (f"{spread.mean:.1f} ± {(spread.high - spread.low) / 2:.1f}" for spread in (spreads[name] for name in GROUPS))
        print(f"| {(judge or '').rpartition('-')[2]} | `{recipe}` |", " | ".join(cells), "|")
