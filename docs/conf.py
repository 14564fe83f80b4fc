"""How Sphinx builds the documentation: `make docs`."""

import re
from importlib.metadata import version as installed

project, author, copyright = "vizrobust", "the vizrobust authors", "the vizrobust authors"  # noqa: A001
version = release = installed("vizrobust")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme, html_title = "furo", "vizrobust"
exclude_patterns = ["README.md", "_build"]
myst_heading_anchors = 4
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
python_use_unqualified_type_names = True


def _links(_app, _page, source):
    """Links to files outside of docs/ name the file: they are in the repository, not on this site."""
    source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\(\.\./([^)]+)\)", r"\1 (`\2` in the repository)", source[0])


def setup(app):
    app.connect("source-read", _links)
