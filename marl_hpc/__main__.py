"""`python -m marl_hpc`, under a launcher or alone."""

import sys

from marl_hpc.cli import main

sys.exit(main())
