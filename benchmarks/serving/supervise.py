"""Runs a command so that nothing of it is left behind: `python -m benchmarks.serving.supervise COMMAND…`.

Servers leave processes to others: daemons that outlive whoever started them, workers that nobody stops.
This process adopts them all. It ends with the command's exit code once the command has ended, or stops
the command on SIGTERM or when its own standard input is closed, as happens when its parent dies; then it
kills what is left.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

import psutil

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 15.0  # for a command to end after SIGTERM
_SWEEP_SECONDS = 5.0
_TICK = 0.02


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit(f"error: cannot adopt processes: {os.strerror(ctypes.get_errno())}")
    asked = Asked()

    def stop(_: int, frame: FrameType | None) -> None:
        asked.to_stop = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle: it closes our input
    threading.Thread(target=_watch, args=(asked,), daemon=True).start()
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    code = _wait(command, asked)
    sweep()
    sys.exit(code if code >= 0 else 128 - code)


class Asked:
    """A plain variable: a handler that takes a lock, as an event's does, may interrupt who holds it."""

    to_stop = False


def _watch(asked: Asked) -> None:
    """Standard input ends when the parent does."""
    while os.read(0, 1 << 16):
        pass
    asked.to_stop = True


def _wait(command: "subprocess.Popen[bytes]", asked: Asked) -> int:
    """Its exit code: by itself, after SIGTERM, or after SIGKILL where that is not heeded."""
    while command.poll() is None and not asked.to_stop:
        time.sleep(_TICK)
    if command.poll() is None:
        command.terminate()
    try:
        return command.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        command.kill()
        return command.wait()


def sweep() -> None:
    """Kill all that descends from this process, again and again until there is nothing."""
    me = psutil.Process()
    while left := me.children(recursive=True):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=_SWEEP_SECONDS)


if __name__ == "__main__":
    main()
