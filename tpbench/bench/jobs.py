"""Jobs in one-thread processes side by side, and what the user sees meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

from tpbench.bench.progress import Progress, Tell
from tpbench.errors import CellFailed

_context: Any = None  # one worker process's own, made when it starts
_messages: Any = None


@dataclass(frozen=True)
class Job:
    """function(context, argument, tell) under a name."""

    name: str
    function: Callable[[Any, Any, Tell], None]
    argument: Any
    needs: tuple[str, ...] = ()  # the names of the jobs that must be done before
    counts: bool = True  # whether it is one of the cells that the user waits for
    work: float = 0.0  # in a unit that jobs share, such as epochs


def side_by_side(jobs: Sequence[Job], workers: int, here: Any, make: Callable[[], Any], progress: Progress) -> None:
    """Run jobs in their order on `workers` processes, each as soon as the job that it needs is done.

    Each process has its own context, make(), which must pickle; with one worker that is this process, and `here` its
    context. The first error ends everything: jobs deal with what they expect themselves. A worker that dies without a
    word (killed, out of memory) is a CellFailed; what was finished is kept.
    """
    if workers <= 1 or not jobs:
        for job in jobs:
            job.function(here, job.argument, partial(progress.tell, job.name))
            progress.finish(job.name, job.counts)
        return
    # Forked, so that the many seconds of imports are paid once: safe here because this process has computed on one
    # thread only, has no GPU in use and starts its own threads later.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    messages = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(make, messages, os.getpid()))
    listener = threading.Thread(target=_listen, args=(messages, progress), daemon=True)
    try:
        waiting, running, done = list(jobs), set(), set()
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs)]
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
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if listener.is_alive():
            messages.put(None)
            listener.join(timeout=5)


def _begin(make: Callable[[], Any], messages: Any, parent: int) -> None:
    """Start of a worker process: one thread for computing, one to end with the parent."""
    global _context, _messages
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _messages, _context = messages, make()


def _work(job: Job) -> Job:
    job.function(_context, job.argument, lambda text, share=None: _messages.put((job.name, text, share)))
    return job


def _end_with(parent: int) -> None:
    """A killed benchmark leaves no worker behind that would write into the next one's folder."""
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


def _listen(messages: Any, progress: Progress) -> None:
    while (message := messages.get()) is not None:
        progress.tell(*message)
