"""Jobs side by side, each in a process of one thread."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from tpbench.bench.progress import Progress
from tpbench.errors import CellFailed
from tpbench.training.train import Update

_context: Any = None  # of this worker process, made when it starts
_updates: Connection | None = None  # where a worker process writes its progress

MESSAGE_BYTES = 4096  # PIPE_BUF on Linux: a pipe takes up to so many bytes at once, so workers never mix their messages


@dataclass(frozen=True)
class Job:
    """A call function(context, argument, update) with a name."""

    name: str
    function: Callable[[Any, Any, Update], None]
    argument: Any
    needs: tuple[str, ...] = ()  # the names of the jobs that must be done first
    counts: bool = True  # whether it is one of the cells that the user waits for
    work: float = 0.0  # in a unit that all jobs share, such as epochs


def side_by_side(jobs: Sequence[Job], workers: int, here: Any, make: Callable[[], Any], progress: Progress) -> None:
    """Run jobs on `workers` processes: whichever is free takes the first job whose needs are done.

    Each process makes its own context by make(), which must pickle. A single worker is this process, with the context
    `here`. The first error ends everything, since jobs handle the errors that they expect. Raises CellFailed when a
    worker dies (killed, out of memory); what was finished is kept.
    """
    try:
        if workers <= 1 or not jobs:
            for job in jobs:
                job.function(here, job.argument, partial(progress.update, job.name))
                progress.finish(job.name, job.counts)
        else:
            _in_processes(jobs, workers, make=make, progress=progress)
    finally:
        progress.stop()


def _in_processes(jobs: Sequence[Job], workers: int, make: Callable[[], Any], progress: Progress) -> None:
    # Forked, so that the many seconds of imports are paid once. This is safe here because this process has computed on
    # one thread only, has no GPU in use and starts its own threads later.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(make, sender, os.getpid()))
    listener = threading.Thread(target=_listen, args=(receiver, progress), daemon=True)
    try:
        waiting = list(jobs)
        running: set[Future] = set()
        done: set[str] = set()
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs)][: workers - len(running)]
            waiting = [job for job in waiting if job not in ready]
            running |= {pool.submit(_work, job) for job in ready}
            if not listener.is_alive():
                listener.start()
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for job in (future.result() for future in ended):
                done.add(job.name)
                progress.finish(job.name, job.counts)
    except BrokenProcessPool as error:
        raise CellFailed(
            "a worker process died (killed, or out of memory); finished cells are kept, the same command continues"
        ) from error
    except (KeyboardInterrupt, SystemExit):  # stop now: no file that the workers write is ever left half written
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        sender.close()  # the last copy: the listener reads to the end and stops
        if listener.is_alive():
            listener.join(timeout=5)


def _begin(make: Callable[[], Any], updates: Connection, parent: int) -> None:
    """Start a worker process: one thread computes, another ends the process when its parent has ended."""
    global _context, _updates
    import torch

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler is not for its workers
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _updates = updates
    _context = make()


def _work(job: Job) -> Job:
    """Run a job in a worker process, which reports its progress through the pipe; return the job."""

    def update(text: str = "", share: float | None = None) -> None:
        message = json.dumps([job.name, text, share]).encode() + b"\n"
        if len(message) <= MESSAGE_BYTES:
            os.write(_updates.fileno(), message)  # no lock that a killed worker could hold for ever

    job.function(_context, job.argument, update)
    return job


def _end_with(parent: int) -> None:
    """End this process with its parent, so that no worker of a killed benchmark writes into the next one's folder."""
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


def _listen(receiver: Connection, progress: Progress) -> None:
    """Show the workers' progress until all of them have closed the pipe."""
    with os.fdopen(os.dup(receiver.fileno()), "rb") as messages:
        for message in messages:
            progress.update(*json.loads(message))
