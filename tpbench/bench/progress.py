"""What the user sees while jobs run: bars on a terminal, otherwise one line for each job that is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpbench.bench.worker import Job


class Progress:
    """Progress on standard error, with an estimate of the training that is left; quiet prints none of it."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.total = 0
        self.done = 0
        self.began = time.monotonic()
        self.texts: dict[str, str] = {}  # the last text of every running job
        self.finished: set[str] = set()
        self.others = ""  # the last text on other commands' workers
        self.estimate = TrainingEstimate()
        self.bars = Bars() if sys.stderr.isatty() and not quiet else None

    def start(self, total: int, done: int, jobs: Sequence[Job]) -> None:
        """Begin to count: `done` of `total` cells were measured before, and these jobs are to run."""
        self.total = total
        self.done = done
        self.estimate = TrainingEstimate(jobs)
        self.finished = set()
        if done:
            self.say(f"{done} of {total} cells have been measured before and are kept; --fresh measures them again")

    def update(self, name: str, text: str = "", share: float | None = None) -> None:
        """Show how far a job is: a text (empty: unchanged) and the share of its work that is done, if known."""
        if name in self.finished:  # read from a worker's pipe after its job was done
            return
        self.texts[name] = text or self.texts.get(name, "")
        first = not self.estimate.speeds
        if share is not None:
            self.estimate.note(name, share, time.monotonic())
        if first and self.estimate.speeds:
            self.say(f"about {clock_time(self.estimate.seconds())} of training left, estimated from the first steps")
        if self.bars is not None:
            self.bars.draw(name, self.texts[name], share)
            self.bars.draw_total(self.done, self.total, self.times())

    def finish(self, name: str, counts: bool) -> None:
        """Show that a job is done. Jobs that train bases or find budgets do not count as cells."""
        self.finished.add(name)
        self.count(name, counts, last=self.texts.pop(name, ""))

    def done_elsewhere(self, name: str, counts: bool) -> None:
        """A worker found a job done. Show it, if it is a cell and no worker of this command has done it."""
        if name not in self.finished:
            self.finished.add(name)
            if counts:
                self.count(name, counts, last="by another run")
            else:
                self.estimate.drop(name)

    def show_other_runs(self, holders: dict[str, str], waiting: bool) -> None:
        """Show which jobs other commands' workers hold; without a terminal, only while a worker waits for them."""
        jobs = sorted(f"{name} ({holder})" for name, holder in holders.items())
        text = "; ".join(jobs[:3]) + (f"; and {len(jobs) - 3} more" if len(jobs) > 3 else "")
        if self.bars is not None:
            self.bars.draw_others(text)
        elif waiting and text and text != self.others:
            self.others = text
            self.say(f"waiting for other runs: {text}")

    def count(self, name: str, counts: bool, last: str) -> None:
        """Count a job that is done and say so in a line, with its last text."""
        self.done += counts
        self.estimate.drop(name)
        if self.bars is not None:
            self.bars.remove(name)
            self.bars.draw_total(self.done, self.total, self.times())
        self.say(f"[{self.done}/{self.total}] {self.times()} {name}{': ' + last if last else ''}")

    def stop(self) -> None:
        """Remove the bars from the terminal. The next update draws them again."""
        if self.bars is not None:
            self.bars.stop()

    def say(self, text: str) -> None:
        """Print a line that stays, above the bars if there are any."""
        if self.bars is not None:
            self.bars.say(text)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def times(self) -> str:
        """The time since the start, and what is left of the training where that can be estimated."""
        elapsed = clock_time(time.monotonic() - self.began)
        if not (self.estimate.speeds and self.estimate.work):
            return elapsed
        return f"{elapsed} (training left: about {clock_time(self.estimate.seconds())})"


class Bars:
    """One bar for all cells and one for every running job, drawn by rich on the terminal of standard error."""

    def __init__(self) -> None:
        from rich.console import Console  # here, because most runs have no terminal
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Display

        self.display = Display(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,  # a thread that draws must not run when this process forks its workers
            transient=True,
            redirect_stdout=False,
        )
        self.all = self.display.add_task("cells", total=None, state="")
        self.others: int | None = None
        self.tasks: dict[str, int] = {}

    def draw(self, name: str, text: str, share: float | None) -> None:
        """Draw a job's text and the share of its work that is done; None leaves its bar as it is."""
        self.display.start()
        if name not in self.tasks:
            self.tasks[name] = self.display.add_task(name, total=None, state="")
        if share is not None:
            self.display.update(self.tasks[name], total=1.0, completed=share)
        self.display.update(self.tasks[name], state=text)

    def draw_total(self, done: int, total: int, times: str) -> None:
        """Draw how many of all cells are done, and the time."""
        self.display.update(self.all, total=total, completed=done, state=f"{done}/{total} {times}", refresh=True)

    def draw_others(self, text: str) -> None:
        """Draw what workers of other commands do, in a line of its own; no line where there are none."""
        if text and self.others is None:
            self.others = self.display.add_task("other runs", total=1.0, state=text)
        elif text:
            self.display.update(self.others, state=text)
        elif self.others is not None:
            self.display.remove_task(self.others)
            self.others = None

    def remove(self, name: str) -> None:
        """Remove the bar of a job, if it has one."""
        task = self.tasks.pop(name, None)
        if task is not None:
            self.display.remove_task(task)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.display.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Leave the terminal as it was before the first bar."""
        self.display.stop()


class TrainingEstimate:
    """Estimates how long the rest of the training takes, from the speed of the running jobs. Other work is left out."""

    def __init__(self, jobs: Sequence[Job] = ()):
        self.work = {job.name: job.work for job in jobs if job.work}
        self.begun: dict[str, tuple[float, float]] = {}  # the first share that a job reported, and when
        self.shares: dict[str, float] = {}
        self.speeds: dict[str, float] = {}  # work per second of the running jobs, or else of the last ones

    def note(self, name: str, share: float, now: float) -> None:
        """Note the share of a job's work that was done at the time `now`, in seconds."""
        first, when = self.begun.setdefault(name, (share, now))
        self.shares[name] = share
        if share > first and now > when:
            self.speeds = {job: speed for job, speed in self.speeds.items() if job in self.shares}
            self.speeds[name] = (share - first) * self.work.get(name, 0.0) / (now - when)

    def drop(self, name: str) -> None:
        """Leave out a job that is done."""
        self.work.pop(name, 0.0)
        self.shares.pop(name, 0.0)

    def seconds(self) -> float:
        """Seconds of training still to do; 0 while no speed is known."""
        left = sum(work * (1 - self.shares.get(name, 0.0)) for name, work in self.work.items())
        speed = sum(self.speeds.values())
        return left / speed if speed else 0.0


def clock_time(seconds: float) -> str:
    """A duration as on a clock: "2:05" or "1:02:05"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
