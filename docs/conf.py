"""The documentation site: Sphinx, furo's look, pages in Markdown (MyST). Nothing is loaded from elsewhere.

sphinx-build -W --keep-going -n -b html docs SITE
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hpc_landscape  # noqa: E402

project = "hpc_landscape"
author = "the hpc_landscape authors"
copyright = author
version = release = hpc_landscape.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "api", "generated", "mathml"]
exclude_patterns = ["_ext"]
smartquotes = False  # -- stays --

# MyST: $formulas$, definition lists, ::: fences, attributes; headings down to the third are link targets.
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "hpc_landscape"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_search_summary = False  # it fetches the pages, which a browser does not do from a disk
html_show_sphinx = False
pygments_style, pygments_dark_style = "default", "github-dark"

autodoc_member_order = "bysource"
maximum_signature_line_length = 90

# Strict (-n): a public name of ours in a page has to lead to it. Others' documentation, and our rooms', is not here.
nitpick_ignore_regex = [(r"py:.*", r"(?!hpc_landscape\b).*"), (r"py:.*", r"hpc_landscape\.(?!metrics\.)[a-z]\w*\..*")]
