"""`python -m srd` is the command `srd`."""

from srd.commands import main

main()
