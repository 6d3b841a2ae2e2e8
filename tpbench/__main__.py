"""`python -m tpbench`: the same as the console script `tpbench`."""

import sys

from tpbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
