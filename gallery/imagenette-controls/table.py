"""The table of docs/study.md: robustness and clarity of each kind of training, means over seeds ± half of the 95 % t interval.

python gallery/imagenette-controls/table.py gallery/imagenette-controls/report.json
"""

# ruff: noqa: T201  a script that prints its table
import json
import sys
from pathlib import Path

from vizrobust.report.study_data import StudyGroups, over_seeds

COLUMNS = {"transfer": 2, "forced_choice": 3, "natural_equivalent": 2}

study = StudyGroups(json.loads(Path(sys.argv[1]).read_text()))
recipe, layer = study.recipes[0], study.layers[0]
clarity = {metric: study.over_judges(metric, recipe, layer) for metric in COLUMNS}
attacked, clean = study.accuracy_of("strongest"), {row["name"]: row["clean"] for row in study.report.rows("checkpoints")}
print("| training | clean | attacked |", " | ".join(COLUMNS), "|")
print("|---" * (len(COLUMNS) + 3) + "|")
for group in study.groups:
    names = [name for name in group.checkpoints if name in clarity["transfer"]]
    if not names or names[0] not in attacked:
        continue
    shares = (f"{100 * over_seeds([of[name] for name in names]).mean:.0f} %" for of in (clean, attacked))
    spreads = {metric: over_seeds([clarity[metric][name] for name in names]) for metric in COLUMNS}
    cells = (
        f"{one.mean:.{COLUMNS[metric]}f} ± {(one.high - one.low) / 2:.{COLUMNS[metric]}f}" for metric, one in spreads.items()
    )
    print(f"| {group.name} |", " | ".join([*shares, *cells]), "|")
