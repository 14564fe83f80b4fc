"""Reports: contact sheets, gallery pages and figures; the only place that draws."""

from vizrobust.report.collect import Collection, Column, Origin, Panel, Picture, Subject, collect
from vizrobust.report.contact_sheet import contact_sheet
from vizrobust.report.gallery import Table, write_gallery
from vizrobust.report.study_page import write_study

__all__ = [
    "Collection",
    "Column",
    "Origin",
    "Panel",
    "Picture",
    "Subject",
    "Table",
    "collect",
    "contact_sheet",
    "write_gallery",
    "write_study",
]
