"""What can go wrong, and the exit code that says so.

The command lines raise these and never print a traceback for them; `exit_code`
is the one place that turns an exception into a message and a number.
"""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from srd.printable import printable_lines
from srd.streams import lasting

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


def warn(text: str) -> None:
    """Tell something before a run has its log; of several processes, the first one does."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"warning: {printable_lines(text)}", file=sys.stderr)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Code that the user's settings chose, and values that they gave it: what it raises is a UserError.

    Args:
        what: was tried, for the message.
    """
    try:
        yield
    except (UserError, RunFailed, Stopped):
        raise
    except Exception as error:  # anything, since anybody's code may run here
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            raise RunFailed(f"{what}: there is not enough memory on the GPU") from None
        reason = " ".join(str(error).split())[:300]
        kind = type(error).__name__
        raise UserError(f"{what}: {kind}: {reason}" if reason else f"{what}: {kind}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name nearest to `name`, or `""`.

    That is one which begins so, has the same last part, or else looks like it.
    """
    known, last = list(known), name.rpartition(".")[2]
    match = [k for k in known if len(name) > 3 and k.startswith(name) and "." not in k[len(name) :]]
    match = match or [
        k for k in known if "." in k and "/" not in k and k.rpartition(".")[2] == last
    ]
    match = match or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def exit_code(run: Callable[[], object]) -> int:
    """Call `run` and return the exit code of the contract; expected errors print one message.

    Messages may quote names that others chose: they are escaped here, line by line. What is printed
    may get lost (a closed pipe, a terminal that is gone): nothing ends for it.
    """
    with lasting():
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
        except OSError as error:
            print(f"failed: {printable_lines(_of_the_system(error))}", file=sys.stderr)
            return EXIT_FAILED
        except MemoryError:
            print("failed: there is not enough memory", file=sys.stderr)
            return EXIT_FAILED
        except RuntimeError as error:
            if (told := _of_torch(error)) is None:
                raise
            print(f"failed: {told}", file=sys.stderr)
            return EXIT_FAILED
        except KeyboardInterrupt as interrupt:
            print("interrupted before there was anything to save", file=sys.stderr)
            return interrupt.args[0] if interrupt.args else EXIT_SIGINT
        return EXIT_DONE


@contextmanager
def clearing_away() -> Iterator[None]:
    """SIGTERM and a lost terminal are an interrupt inside: what is half-written does not stay."""
    here, signals = os.getpid(), (signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, _: object) -> None:
        if os.getpid() == here:  # a forked one has nothing of its own
            raise KeyboardInterrupt(128 + number)
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    default = [number for number in signals if signal.getsignal(number) == signal.SIG_DFL]
    for number in default:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in default:
            signal.signal(number, signal.SIG_DFL)


def _of_torch(error: RuntimeError) -> str | None:
    """What a GPU or torch's compiler could not do; None for other errors, which are mistakes of ours."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "OutOfMemoryError" in kinds:
        return "there is not enough memory on the GPU: a smaller batch, or train.micro_batch, needs less"
    if "TorchDynamoException" in kinds:
        reason = printable_lines(" ".join(str(error).split())[:200])
        return f"the network cannot be compiled ({reason}): leave `compile` out"
    return None


def _of_the_system(error: OSError) -> str:
    """What the system refused, and for which file."""
    reason = " ".join(str(error.strerror or error).split())
    if error.errno in (errno.EMFILE, errno.ENFILE):
        reason += "; allow more with `ulimit -n`, or use fewer loader processes"
    return f"{reason} ({error.filename})" if error.filename else reason
