"""``python -m nerfit``: the command line."""

import sys

from nerfit.cli import main

sys.exit(main())
