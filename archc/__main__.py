"""`python -m archc` is the command `archc`."""

import sys

from archc.cli import main

if __name__ == "__main__":
    sys.exit(main())
