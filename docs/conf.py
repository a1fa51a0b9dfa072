"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "onnxq"
author = "the authors of onnxq"
release = metadata.version("onnxq")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
exclude_patterns = ["pictures"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"onnxq {release}"
html_show_sphinx = html_show_copyright = False
html_math_renderer = "mathml"
# The lines that commands print are 100 characters long.
html_theme_options = {"light_css_variables": {"code-font-size": "0.7rem"}}

# Docstrings name code in single backticks.
default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
