"""``python -m medmae``: the command line, also under torchrun."""

import sys

from medmae.cli import main

sys.exit(main())
