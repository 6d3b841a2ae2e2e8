"""Jobs side by side: several workers of one thread each, as processes of this command."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from tpbench.bench.progress import Progress
from tpbench.bench.worker import Context, Job, pull
from tpbench.errors import CellFailed, OutOfTime

__all__ = ["Job", "side_by_side"]

_context: Context | None = None  # of this worker process, made when it starts
_display: Messages | None = None  # where a worker process shows what it does

MESSAGE_BYTES = 4096  # PIPE_BUF on Linux: a pipe takes up to 4096 bytes at once, so messages never mix


def side_by_side(
    jobs: Sequence[Job], workers: int, context: Context, make_context: Callable[[], Context], progress: Progress
) -> set[str]:
    """Do jobs with several workers (`tpbench.bench.worker`); return the names of the jobs left to other commands.

    A single worker is this process and uses `context`. Several workers are processes, each of which calls
    make_context(), which must pickle. Raises CellFailed when a worker dies (killed, out of memory). Raises OutOfTime
    when the time limit was reached and all workers have stopped; finished work is kept.
    """
    try:
        if workers <= 1 or not jobs:
            return pull(jobs, context, progress)
        workers = min(workers, len(jobs))
        return _in_processes(jobs, workers, context.device.type, make_context=make_context, progress=progress)
    finally:
        progress.stop()
        if context.writes:
            with contextlib.suppress(OSError):  # the error that ended the jobs is reported, not this one
                context.claims.delete_dead()


def _in_processes(
    jobs: Sequence[Job], workers: int, device: str, make_context: Callable[[], Context], progress: Progress
) -> set[str]:
    context = multiprocessing.get_context(start_method(device))
    receiver, sender = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(make_context, sender, os.getpid()))
    listener = threading.Thread(target=_listen, args=(receiver, progress), daemon=True)
    try:
        running = [pool.submit(_work, jobs) for _ in range(workers)]
        listener.start()
        return _results(running)
    except BrokenProcessPool as error:
        raise CellFailed(
            "a worker process died (killed, or out of memory); finished cells are kept, the same command continues"
        ) from error
    except OutOfTime:  # all workers have stopped and saved everything
        raise
    except BaseException:  # stop at once: workers write files atomically
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        sender.close()  # the last copy: the listener reads to the end and stops
        if listener.is_alive():
            listener.join(timeout=5)


def start_method(device: str) -> str:
    """How worker processes start, for a device of this type.

    Forked processes share the imports, which take seconds. That is safe because this process has computed on one thread
    only and starts its own threads later. But a forked process cannot use a GPU that its parent has used.
    """
    return "fork" if sys.platform == "linux" and device == "cpu" else "spawn"


def _results(running: Sequence[Future]) -> set[str]:
    """The jobs left to other commands. Raises the first error, or OutOfTime if the time limit stopped the workers."""
    ended, _ = wait(running, return_when=FIRST_EXCEPTION)
    left_to_others = [future.result() for future in ended]
    if None in left_to_others:
        raise OutOfTime
    return set().union(*left_to_others)


def _begin(make_context: Callable[[], Context], updates: Connection, parent: int) -> None:
    """Start a worker process: one thread computes, another ends the process when its parent has ended."""
    global _context, _display
    import torch

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler is not for its workers
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _display = Messages(updates)
    _context = make_context()
    _context.claims.command = parent


def _work(jobs: Sequence[Job]) -> set[str] | None:
    """Do jobs in a worker process; None if the time limit stopped it."""
    try:
        return pull(jobs, _context, _display)
    except OutOfTime:
        return None


def _end_with(parent: int) -> None:
    """End this process with its parent, so that no worker outlives a killed benchmark."""
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


class Messages:
    """A worker process's progress: lines of JSON, sent through a pipe to the parent's progress."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe

    def update(self, name: str, text: str = "", share: float | None = None) -> None:
        """A job of this worker makes progress; share: the part of it that is done."""
        self.send("update", name, text, share)

    def finish(self, name: str, counts: bool) -> None:
        """A job of this worker is done."""
        self.send("finish", name, counts)

    def done_elsewhere(self, name: str, counts: bool) -> None:
        """Another command's worker has done a job."""
        self.send("done_elsewhere", name, counts)

    def show_other_runs(self, holders: dict[str, str], waiting: bool) -> None:
        """Workers of other commands hold jobs; the first ten of them fit into a message."""
        self.send("show_other_runs", dict(list(holders.items())[:10]), waiting)

    def send(self, *words: Any) -> None:
        """Send the name of one of Progress's methods, and its arguments."""
        message = json.dumps(words).encode() + b"\n"
        if len(message) <= MESSAGE_BYTES:
            os.write(self.pipe.fileno(), message)  # without a lock, which a killed worker might never release


def _listen(receiver: Connection, progress: Progress) -> None:
    """Show what the workers do until all of them have closed the pipe."""
    with os.fdopen(os.dup(receiver.fileno()), "rb") as messages:
        for message in messages:
            what, *words = json.loads(message)
            with contextlib.suppress(Exception):  # a display that fails must not block the workers
                getattr(progress, what)(*words)
