"""The documentation site: ``sphinx-build -W docs site`` makes it, without network. Wrong numbers in a lesson fail the build."""

import os
import sys
from pathlib import Path

from nerfit import __version__

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the lessons: small networks gain nothing from more, and lose much on a busy machine
sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project, author, release = "nerfit", "the nerfit team", __version__
extensions = ["myst_nb", "mathml"]
exclude_patterns = ["_extensions"]
html_theme, html_title = "furo", "nerfit"
html_show_sphinx, html_show_copyright = False, False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"
nb_execution_mode = "cache"  # an unchanged lesson is not executed again
nb_execution_timeout = 600  # seconds of a cell, on a machine that does other things too
nb_execution_raise_on_error = True
nb_merge_streams = True
