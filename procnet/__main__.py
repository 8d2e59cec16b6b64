"""``python -m procnet``: the command line."""

import sys

from procnet.cli import main

sys.exit(main())
