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
from typing import Any

from tpbench.errors import CellFailed

_context: Any = None  # one worker process's own, made when it starts
_messages: Any = None


@dataclass(frozen=True)
class Job:
    """function(context, argument, tell) under a name."""

    name: str
    function: Callable[[Any, Any, Callable[[str], None]], None]
    argument: Any
    needs: tuple[str, ...] = ()  # the names of the jobs that must be done before
    counts: bool = True  # whether it is one of the cells that the user waits for


class Progress:
    """Progress on standard error: one line that changes on a terminal, one line per finished job elsewhere."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.began = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.now: dict[str, str] = {}

    def start(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        if done:
            self.say(f"{done} of {total} cells have been measured before and are kept; --fresh measures them again")

    def tell(self, name: str, text: str) -> None:
        """A job says where it is."""
        self.now[name] = text
        if self.terminal:
            running = " | ".join(f"{job}: {state}" for job, state in self.now.items())
            print(
                f"\r\033[K[{self.done}/{self.total}] {self.clock()} {running}"[:160],
                end="",
                file=sys.stderr,
                flush=True,
            )

    def finish(self, name: str, counts: bool) -> None:
        """A job is done; bases are jobs too but no cells."""
        last = self.now.pop(name, "")
        self.done += counts
        self.say(f"[{self.done}/{self.total}] {self.clock()} {name}{': ' + last if last else ''}")

    def say(self, text: str) -> None:
        print(("\r\033[K" if self.terminal else "") + text, file=sys.stderr, flush=True)

    def clock(self) -> str:
        seconds = int(time.monotonic() - self.began)
        return f"{seconds // 60}:{seconds % 60:02d}"


def side_by_side(jobs: Sequence[Job], workers: int, here: Any, make: Callable[[], Any], progress: Progress) -> None:
    """Run jobs in their order on `workers` processes, each as soon as the job that it needs is done.

    Each process has its own context, make(), which must pickle; with one worker that is this process, and `here` its
    context. The first error ends everything: jobs deal with what they expect themselves. A worker that dies without a
    word (killed, out of memory) is a CellFailed; what was finished is kept.
    """
    if workers <= 1 or not jobs:
        for job in jobs:
            job.function(here, job.argument, lambda text, name=job.name: progress.tell(name, text))
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
    job.function(_context, job.argument, lambda text: _messages.put((job.name, text)))
    return job


def _end_with(parent: int) -> None:
    """A killed benchmark leaves no worker behind that would write into the next one's folder."""
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


def _listen(messages: Any, progress: Progress) -> None:
    while (message := messages.get()) is not None:
        progress.tell(*message)
