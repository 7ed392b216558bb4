"""torchrun, with the messages and exit codes of a single process.

torchrun knows two ends of a process: zero, and a crash, after which it starts all of them again. A
mistyped flag would be tried four times and told by every process, and a run that stopped because
it was asked to would count as one that died. So two roles stand around it:

    elastic.py agent TORCHRUN'S ARGUMENTS     torchrun itself; its failures are told in a line
    elastic.py worker MODULE ARGUMENTS        what it starts: calls MODULE.run(ARGUMENTS)

They and `scripts/launch.sh` meet in $SRD_LAUNCH, a folder of one launch on one machine:

    pid.N     of the process with local rank N, while it works; gets the launcher's signals
    end.N     its exit code, when that end was meant: such a run is over, not to be started again
    told.*    a message that one of the processes has told: the others need not
    began     a process has begun to work: the machines had found each other
    stop      the launcher was asked to stop: a process that starts later has nothing to do
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the checkout, not scripts/

from srd.distributed.signals import stop_with_parent  # noqa: E402
from srd.errors import RunFailed, Stopped, UserError, exit_code  # noqa: E402

LAUNCH = Path(os.environ["SRD_LAUNCH"])
OTHERS_SECONDS = 5.0  # for the other processes here to come to the same end


def agent(arguments: Sequence[str]) -> None:
    """Run torchrun.

    Raises:
        UserError: the machines did not find each other. RunFailed: a process, or another machine,
            died too often. SystemExit: a signal ended torchrun.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    stop_with_parent()
    host, port = os.environ.get("RDZV_HOST", "localhost"), os.environ.get("RDZV_PORT", "")
    seconds = os.environ.get("SRD_DIST_TIMEOUT")
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise UserError(f"RDZV_HOST={host} cannot be found ({error.strerror})") from None
    try:
        torchrun.main(list(arguments))
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except RendezvousError as error:
        if (LAUNCH / "began").exists():
            raise RunFailed(
                f"lost other machines, and did not meet them again at {host}:{port} "
                f"({type(error).__name__}, {seconds} s at most): the same command on all of them "
                "goes on from the last save"
            ) from None
        raise UserError(
            f"the machines were to meet at {host}:{port} and did not within {seconds} s "
            f"({type(error).__name__}): check RDZV_HOST, RDZV_PORT, the firewall, and that NNODES "
            "and the command are the same on all"
        ) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RunFailed(
            f"process {rank} died (exit code {failure.exitcode}) and was started again as often as "
            "MAX_RESTARTS allows; what it said is above"
        ) from None


def worker(module: str, arguments: Sequence[str]) -> int:
    """Run a command line of the project as one of torchrun's processes; returns what to tell it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    rank = os.environ["LOCAL_RANK"]
    mine = LAUNCH / f"pid.{rank}"
    mine.write_text(f"{os.getpid()}\n")  # before looking for `stop`: the launcher does the reverse
    try:
        if over():
            return 0
        (LAUNCH / "began").touch()
        sys.argv = [module.replace(".", "/") + ".py", *arguments]
        code = exit_code(lambda: tell_once(lambda: import_module(module).run(arguments)))
        (LAUNCH / f"end.{rank}").write_text(f"{code}\n")
    finally:
        mine.unlink(missing_ok=True)
    return code if code and others_go_on() else 0


def over() -> bool:
    """Whether the run has been asked to stop, or one of its processes has ended it."""
    ends = [int(path.read_text() or 0) for path in LAUNCH.glob("end.*")]
    return (LAUNCH / "stop").exists() or any(ends)


def tell_once(run: Callable[[], None]) -> None:
    """Call `run`; what it raises is shown by the first process on this machine that raises it."""
    try:
        run()
    except (UserError, RunFailed, Stopped, KeyboardInterrupt) as error:
        digest = hashlib.sha256(repr(error).encode()).hexdigest()[:16]
        try:
            (LAUNCH / f"told.{digest}").touch(exist_ok=False)
        except FileExistsError:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until this process ends, now)
        raise


def others_go_on() -> bool:
    """Whether other processes here work on although this one has ended: torchrun must end them."""
    deadline = time.monotonic() + OTHERS_SECONDS
    while others := any(LAUNCH.glob("pid.*")):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return others


def main() -> None:
    role, *arguments = sys.argv[1:]
    if role == "worker":
        sys.exit(worker(arguments[0], arguments[1:]))
    sys.exit(exit_code(lambda: agent(arguments)))


if __name__ == "__main__":
    main()
