"""`python scripts/bench.py ...` is `srd bench ...`."""

import sys

from srd.commands.bench import run
from srd.errors import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))
