"""`python -m srd` is the command `srd`."""

import sys

from srd.commands import main

sys.exit(main())
