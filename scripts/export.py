"""`python scripts/export.py ...` is `srd export ...`."""

import sys

from srd.commands.export import run
from srd.errors import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))
