"""What can go wrong, and the exit code that says so.

The command lines raise these and never print a traceback for them; `exit_code`
is the one place that turns an exception into a message and a number.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

from srd.printable import printable_lines

EXIT_DONE, EXIT_FAILED, EXIT_USER = 0, 1, 2
EXIT_SIGINT, EXIT_SIGTERM = 130, 143  # 128 + the signal's number


class UserError(Exception):
    """The user's input is wrong: what, where and how to mend it, in a line or two."""


class RunFailed(Exception):
    """The run itself failed (a loss that is not finite, a disk that is full)."""


class Stopped(Exception):
    """A signal asked the run to stop, and everything has been saved."""

    def __init__(self, message: str, code: int = EXIT_SIGTERM) -> None:
        super().__init__(message)
        self.code = code


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name nearest to `name`, or `""`."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def exit_code(run: Callable[[], object]) -> int:
    """Call `run` and return the exit code of the contract; expected errors print one message.

    Messages may quote names that others chose: they are escaped here, line by line.
    """
    try:
        run()
    except UserError as error:
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        return EXIT_USER
    except RunFailed as error:
        print(f"failed: {printable_lines(str(error))}", file=sys.stderr)
        return EXIT_FAILED
    except Stopped as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("interrupted before there was anything to save", file=sys.stderr)
        return EXIT_SIGINT
    return EXIT_DONE
