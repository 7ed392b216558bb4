"""`python scripts/report.py ...` is `srd report ...`."""

import sys

from srd.commands.report import run
from srd.errors import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))
