"""The contact sheets of a study without the photographs that its own ones end with: sheets.py RUN HERE [baselines]."""

import json
import sys
from pathlib import Path

from vizrobust.report.study_data import StudyGroups
from vizrobust.report.study_page import study_sheet

run, here = Path(sys.argv[1]), Path(sys.argv[2])
study = StudyGroups({**json.loads((run / "report.json").read_text()), "exemplars": []})
for recipe in study.recipes:
    for layer in study.layers:
        name = recipe if layer == study.layers[0] else f"{recipe}-{layer}"
        study_sheet(here / f"contact-sheet-{name}.png", study, run, recipe, layer, baselines="baselines" in sys.argv)
