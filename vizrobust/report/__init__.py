"""Reports: contact sheets, gallery pages and figures; the only place that draws."""

from vizrobust.report.collect import Collection, Column, Picture, collect
from vizrobust.report.contact_sheet import contact_sheet
from vizrobust.report.gallery import write_gallery

__all__ = [
    "Collection",
    "Column",
    "Picture",
    "collect",
    "contact_sheet",
    "write_gallery",
]
