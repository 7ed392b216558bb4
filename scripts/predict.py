"""`python scripts/predict.py ...` is `srd predict ...`."""

import sys

from srd.commands.predict import run
from srd.errors import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))
