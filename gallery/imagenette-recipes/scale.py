"""The natural scale over K, by both recipes, and over eps, from the study of other radii: scale.py REPORT RADII PNG."""

import sys
from pathlib import Path

from vizrobust.report.study_clarity_figures import natural_scale_over_k
from vizrobust.report.study_data import StudyGroups
from vizrobust.report.style import house_style, save_figure
from vizrobust.study import StudyReport

with house_style():
    figure = natural_scale_over_k(*(StudyGroups(StudyReport.read(path)) for path in sys.argv[1:3]))
    save_figure(figure, Path(sys.argv[3]), " ".join(sys.argv))
