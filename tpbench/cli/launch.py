"""How `run` starts workers: processes on one machine, one worker per GPU, or an array of jobs on a Slurm cluster.

All workers run the same command on the same results folder, and take the jobs that are left (`tpbench.bench.worker`).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpbench.cli.exit_codes import DONE, FAILED, say
from tpbench.errors import UsageError, in_short

if TYPE_CHECKING:
    from tpbench.recipe import Recipe

HERE = "here"
MOST_WORKERS = 1024  # a larger number is a typing error
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
SHARED = ("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min")  # by submitit's names


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add --workers, --gpus, --launcher, --jobs and --slurm to a verb."""
    verb.add_argument(
        "--workers", type=int, metavar="N", help="N workers of one thread each on a device; default: the recipe's"
    )
    verb.add_argument(
        "--gpus",
        type=int,
        default=0,
        metavar="N",
        help="N GPUs of this machine side by side, each with one worker, or --workers",
    )
    verb.add_argument(
        "--launcher",
        choices=(HERE, "submitit"),
        default=HERE,
        help="submitit: submit an array of --jobs workers to Slurm, and return",
    )
    verb.add_argument("--jobs", type=int, default=0, metavar="N", help="how many workers --launcher submitit submits")
    verb.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of sbatch for --launcher submitit, e.g. partition=gpu, time=240 (minutes), gpus_per_node=1",
    )


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for flags that do not go together."""
    for flag in ("workers", "gpus", "jobs"):
        value = getattr(arguments, flag)
        least = 1 if flag == "workers" else 0
        if value is not None and not least <= value <= MOST_WORKERS:
            raise UsageError(f"--{flag} {value}: at least 1 is needed, at most {MOST_WORKERS} are possible")
    remote = arguments.launcher != HERE
    if remote != bool(arguments.jobs):
        raise UsageError("--launcher submitit and --jobs N go together: N workers are submitted")
    if arguments.slurm and not remote:
        raise UsageError("--slurm is for --launcher submitit")
    if remote and arguments.gpus:
        raise UsageError("--gpus is for this machine; on a cluster every job is a worker: --slurm gpus_per_node=1")
    if arguments.fresh and (remote or arguments.gpus):
        raise UsageError("--fresh would let the workers delete each other's results; delete the folder instead")
    if "RANK" in os.environ and (uses_other_processes(arguments) or (arguments.workers or 1) > 1):
        raise UsageError("the ranks of torchrun are one worker; start torchrun again for another")


def check_workers(workers: int, recipe: Recipe, device: str) -> None:
    """Raise UsageError if several workers on a device, such as "auto", would disturb each other's timing."""
    from tpbench import environment

    if workers > 1 and not recipe.can_share(environment.device(device).type):
        raise UsageError(
            f"the cells of recipe {recipe.name} sample latency on the GPU, which other workers would disturb; with"
            " --set measure.repeats=0, which makes it a recipe of its own, rows are timed at the end instead"
        )


def uses_other_processes(arguments: argparse.Namespace) -> bool:
    """Whether the flags ask for other processes to do the work."""
    return bool(arguments.gpus) or arguments.launcher != HERE


def start_workers(arguments: argparse.Namespace, out: Path) -> int:
    """Start the workers that the flags ask for, each with this command's arguments; return the exit code."""
    words = [
        *without_slurm(arguments.words),
        "--gpus=0",
        "--jobs=0",
        f"--launcher={HERE}",
    ]  # the last value of a flag is used
    if arguments.gpus:
        words += ["--device=cuda", f"--workers={arguments.workers or 1}"]
        return on_gpus(words, visible_gpus(arguments.gpus))
    return on_slurm(words, arguments.jobs, folder=out / "work" / "slurm", asked=arguments.slurm)


def without_slurm(words: Sequence[str]) -> Iterator[str]:
    """A command's arguments without --slurm and its value."""
    rest = iter(words)
    for word in rest:
        if word == "--slurm":
            next(rest, None)
        elif not word.startswith("--slurm="):
            yield word


# ------------------------------------------------------------------------------------ one machine


def visible_gpus(count: int) -> list[str]:
    """The first `count` GPUs, by their names in CUDA_VISIBLE_DEVICES. Raises UsageError if there are fewer."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        names = [str(number) for number in range(torch.cuda.device_count())]
    else:
        names = [name.strip() for name in listed.split(",") if name.strip()][: torch.cuda.device_count()]
    if count > len(names):
        raise UsageError(f"--gpus {count}: this machine has {len(names)} that can be used")
    return names[:count]


def on_gpus(words: Sequence[str], gpus: Sequence[str]) -> int:
    """Run `tpbench WORDS` once for each GPU, side by side, and return the first exit code that is not 0.

    Other workers take over the cell of a worker that dies. All workers end with this process.
    """
    workers = {gpu: worker_on(gpu, words) for gpu in gpus}
    listeners = [threading.Thread(target=pass_on, args=(gpu, worker)) for gpu, worker in workers.items()]
    try:
        for listener in listeners:
            listener.start()
        codes = {gpu: worker.wait() for gpu, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.terminate()  # no effect on a worker that has ended
        for worker in workers.values():
            worker.wait()
        for listener in listeners:
            if listener.ident is not None:
                listener.join()
    for gpu, code in codes.items():
        if code < 0:
            say(f"the worker on GPU {gpu} was killed by signal {-code}; the same command continues", FAILED)
    worst = next((code for code in codes.values() if code), DONE)
    return FAILED if worst < 0 else worst


def worker_on(gpu: str, words: Sequence[str]) -> subprocess.Popen:
    """The process of one worker, which sees one GPU."""
    return subprocess.Popen(
        [sys.executable, "-m", "tpbench", *words],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent(),
    )


def end_with_parent() -> Callable[[], Any] | None:
    """A function for the child that makes it receive SIGTERM when its parent dies for any reason; Linux only."""
    if sys.platform != "linux":
        return None
    return partial(ctypes.CDLL(None).prctl, DIES_WITH_PARENT, signal.SIGTERM)


def pass_on(gpu: str, worker: subprocess.Popen) -> None:
    """Forward a worker's standard error line by line, prefixed with its GPU."""
    for line in worker.stderr:
        print(f"GPU {gpu}: {line.rstrip()}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------ a cluster


class Command:
    """`tpbench WORDS` as a submitit job, which is queued again after a time limit or a preemption."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)

    def __call__(self) -> int:
        from tpbench.cli import main

        return main(self.words)

    def checkpoint(self) -> Any:
        """The job to queue after this one: the same command, since the folder shows what is left."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def on_slurm(words: Sequence[str], count: int, *, folder: Path, asked: Sequence[str]) -> int:
    """Submit `count` workers as one array of jobs and return; with cluster=local, run them here and wait."""
    options = options_of(asked)
    try:
        import submitit
    except ImportError:
        raise UsageError("--launcher submitit needs submitit: python -m pip install submitit") from None
    cluster = options.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(name="tpbench", slurm_array_parallelism=count, **options)
        with executor.batch():
            jobs = [executor.submit(Command(words)) for _ in range(count)]
    except (RuntimeError, ValueError, NameError, AssertionError, submitit.core.utils.FailedJobError) as error:
        raise UsageError(f"--launcher submitit: {in_short(error)}") from error
    say(f"submitted {count} workers: {', '.join(job.job_id for job in jobs)}; what they print is in {folder}", DONE)
    if cluster == "slurm":
        return DONE
    try:
        return next((code for code in [job.result() for job in jobs] if code), DONE)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel(check=False)


def options_of(asked: Sequence[str]) -> dict[str, Any]:
    """The options KEY=VALUE by submitit's names. Raises UsageError for other texts, and without a time."""
    found: dict[str, Any] = {}
    for text in asked:
        key, equals, value = text.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if not (key and equals and value):
            raise UsageError(f"--slurm {text!r}: expected KEY=VALUE, as in partition=gpu")
        number = int(value) if value.isdecimal() else value
        if key == "time" and isinstance(number, int):
            key = "timeout_min"
        found[key if key in (*SHARED, "cluster") else f"slurm_{key}"] = number
    if not {"timeout_min", "slurm_time"} & found.keys():
        raise UsageError("--launcher submitit: say how many minutes a worker may run, as in --slurm time=240")
    return found
