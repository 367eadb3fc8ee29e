"""`python -m tools.gpu`: see `run`."""

import sys

from .run import main

sys.exit(main())
