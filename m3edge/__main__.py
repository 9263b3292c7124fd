"""`python -m m3edge`, the same as the command `m3edge`."""

import sys

from m3edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
