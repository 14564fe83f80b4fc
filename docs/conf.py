"""How Sphinx builds the documentation: `make docs`. Notebooks are run, and one that fails stops the build."""

import os
import re
from importlib.metadata import version as installed

project, author, copyright = "vizrobust", "the vizrobust authors", "the vizrobust authors"  # noqa: A001
version = release = installed("vizrobust")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.viewcode"]
nb_execution_mode, nb_execution_timeout, nb_execution_raise_on_error = "force", 600, True
nb_execution_in_temp = True
# Asking for others' inventories needs a network; with it names of torch link to its documentation.
_others = {
    "python": "https://docs.python.org/3",
    "torch": "https://docs.pytorch.org/docs/stable",
    "numpy": "https://numpy.org/doc/stable",
}
_online = bool(os.environ.get("VIZROBUST_DOCS_ONLINE"))
intersphinx_mapping = {name: (address, None) for name, address in _others.items()} if _online else {}
linkcheck_timeout, linkcheck_anchors = 10, False
html_theme, html_title = "furo", "vizrobust"
exclude_patterns = ["README.md", "_build", "**/runs"]
myst_heading_anchors = 4
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
python_use_unqualified_type_names = True


def _links(_app, page, source):
    """Links to files outside of docs/ name the file: they are in the repository, not on this site."""
    if not page.startswith("notebooks/"):
        source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\(\.\./([^)]+)\)", r"\1 (`\2` in the repository)", source[0])


def setup(app):
    app.connect("source-read", _links)
