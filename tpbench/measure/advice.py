"""Which method suits a given model on a given machine: every method at the requested latency, ranked.

First, a search finds the counts at which each method meets the latency. Then the methods that keep the most tokens are
timed in turns, and finally the best of them at other batch sizes, dtypes and modes. With labelled images, every method
is timed and evaluated off the shelf.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import Any

import torch

from tpbench.errors import UsageError
from tpbench.measure import entries, grid_session, latency_budget, session, speeds
from tpbench.measure.entries import Grid, Solved, Subject
from tpbench.measure.latency_budget import Solution
from tpbench.measure.modes import Mode
from tpbench.measure.session import Effort, Watch, unwatched
from tpbench.measure.speeds import Ratio, Speed
from tpbench.registry import Variant
from tpbench.schedule import Kind, Schedule
from tpbench.training.data import Part
from tpbench.training.evaluate import evaluate

Solutions = Mapping[tuple[Variant, Schedule], Solution]

# The share of the remaining time that each step may use.
SOLVING = 0.5
RANKING = 0.65
PLACES = 0.9
ROUNDS = 50  # at most, in either session
FINALISTS = 12  # how many methods are timed when they are ranked by tokens kept


@dataclass(frozen=True)
class Request:
    """A request for advice: a share of the unreduced latency, to meet at the largest batch and the first dtype, eager.

    The winner is then timed at every batch size, dtype and mode. seconds: roughly how long all timing may take.
    """

    schedule: Schedule
    variants: tuple[Variant, ...]
    batch_sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    modes: tuple[Mode, ...]
    seconds: float


@dataclass(frozen=True)
class Choice:
    """One method at the requested latency.

    kept: the tokens that go on after a block as a share of all, mean over blocks. top1: a share; None if not evaluated.
    marked: whether it misses the latency by more than 2 %.
    """

    method: str
    schedule: str
    speedup: Ratio
    marked: bool
    kept: float
    top1: float | None = None


@dataclass(frozen=True)
class Place:
    """The winner's speed-up over the fastest unreduced model for one batch size, dtype and mode."""

    batch: int
    dtype: str
    mode: str
    speedup: Ratio

    @property
    def pays(self) -> bool | None:
        """Whether reduction makes the model faster; None if the interval includes 1."""
        return None if self.speedup.includes_one else self.speedup.low > 1


@dataclass(frozen=True)
class Advice:
    """The answer to a request.

    choices: best first. unmet: method -> why it cannot meet the latency. behind: methods that were not timed because
    the search for counts found that they keep fewer tokens than the choices; best first. code: two lines of Python.
    same_model_twice: the control of the session. images: the number of labelled images, 0 if there are none.
    """

    model: str
    weights: str
    latency: float
    batch: int
    dtype: str
    choices: list[Choice]
    unmet: dict[str, str]
    places: list[Place]
    code: list[str]
    same_model_twice: Ratio
    rounds: int
    behind: list[str] = field(default_factory=list)
    images: int = 0
    unreduced_top1: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def visible(self) -> float | None:
        """The half-width of a 95 % interval of a difference in top-1, as a share, assuming independent images."""
        if not self.images:
            return None
        p = self.unreduced_top1
        return 1.96 * sqrt(2 * p * (1 - p) / self.images)


def blocks(model: torch.nn.Module) -> str:
    """Where to reduce by default: after a quarter, a half and three quarters of the blocks."""
    depth = len(model.blocks)
    return ",".join(map(str, sorted({depth * quarter // 4 for quarter in (1, 2, 3)})))


def advise(subject: Subject, request: Request, part: Part | None = None, watch: Watch = unwatched) -> Advice:
    """Time every method on a model and rank the methods.

    They are ranked by accuracy off the shelf on the labelled images of `part`, or without these by the tokens that they
    keep. Raises UsageError if no method meets the latency.
    """
    for mode in request.modes:  # before minutes of timing
        mode.check(subject.where)
    budget = TimeBudget(request.seconds, watch)
    grid = Grid(
        request.variants,
        schedules=(request.schedule,),
        batch_sizes=(max(request.batch_sizes),),
        dtypes=request.dtypes[:1],
    )
    solutions = searched(subject, grid, budget)
    solved = grid_session.counted(solutions)
    behind = [] if part is not None else left_behind(subject, solutions)
    grid = replace(grid, variants=tuple(variant for variant in request.variants if variant not in behind))
    timed = timed_alone(subject, grid=grid, solved=solved, budget=budget, share=RANKING)
    (group,) = timed.groups
    scores = {} if part is None else accuracies(subject, grid=grid, solved=solved, part=part, watch=watch)
    rows = [speed for speed in speeds.speeds(timed, group) if speed.row.asked is not None]
    choices = ranked([choice(subject, speed=speed, solved=solved, scores=scores) for speed in rows])
    if not choices:
        raise UsageError(next(row.error for row in timed.rows if row.error))
    winner = next(variant for variant in request.variants if str(variant) == choices[0].method)
    places = timed_everywhere(subject, request=request, winner=winner, best=choices[0], budget=budget)
    return Advice(
        model=subject.name,
        weights=subject.weights,
        latency=float(request.schedule.budget),
        batch=group.batch,
        dtype=group.dtype,
        choices=choices,
        unmet={row.method: row.error for row in timed.rows if row.error is not None},
        places=places,
        code=code(winner, choices[0].schedule),
        same_model_twice=speeds.control(timed, group),
        rounds=timed.rounds,
        behind=[str(variant) for variant in behind],
        images=0 if part is None else len(part),
        unreduced_top1=scores.get("none"),
        environment=timed.environment,
        facts=timed.facts,
    )


def searched(subject: Subject, grid: Grid, budget: TimeBudget) -> Solutions:
    """The counts of every method that come nearest to the latency, however far off they are."""
    entries.check(subject, grid)
    dtype, batch, mode = grid.solved_at
    return latency_budget.solve(
        subject,
        list(grid.pairs()),
        batch=batch,
        dtype=dtype,
        mode=mode,
        seconds=budget.effort(SOLVING).seconds,
        farthest=inf,
        watch=budget.watch,
    )


def left_behind(subject: Subject, solutions: Solutions) -> list[Variant]:
    """The methods that rank behind FINALISTS others by the tokens that they would keep exactly at the latency.

    A method that is 1 % too slow is assumed to lose 1 % of its tokens. Methods far from the latency come last; methods
    without counts are left out.
    """

    def place(variant: Variant, solution: Solution) -> tuple[bool, float]:
        schedule = asked[variant]
        at_latency = kept(subject.model, schedule.blocks, solution.counts) - solution.off * float(schedule.budget)
        return abs(solution.off) > latency_budget.FARTHEST, -at_latency

    found = {variant: solution for (variant, _), solution in solutions.items() if solution.counts}
    asked = dict(solutions.keys())
    return sorted(found, key=lambda variant: place(variant, found[variant]))[FINALISTS:]


class TimeBudget:
    """The time that is left, and its division among the steps."""

    def __init__(self, seconds: float, watch: Watch):
        self.end = time.monotonic() + seconds
        self.shown = watch

    @property
    def left(self) -> float:
        """Seconds until the end; 0 after it."""
        return max(0.0, self.end - time.monotonic())

    def effort(self, share: float) -> Effort:
        """At most ROUNDS rounds, in a share of the remaining time."""
        return Effort(ROUNDS, share * self.left)

    def watch(self, stage: str, share: float, left: float) -> None:
        """Show progress with the time that is left for all steps, not for one step alone."""
        self.shown(stage, share, max(left, self.left))


def timed_alone(subject: Subject, grid: Grid, solved: Solved, budget: TimeBudget, share: float) -> session.Session:
    """Run a session of a grid in a share of the remaining time; the warm-up is part of it."""
    end = time.monotonic() + share * budget.left
    found = entries.entries(subject, grid, solved)
    entries.require_some(found)
    begun = session.begin(subject, machine_name="unnamed", wanted=ROUNDS, dtype=grid.dtypes[0])
    warm = session.warmed(found, subject.where, budget.watch)
    effort = Effort(ROUNDS, max(0.0, end - time.monotonic()))
    return session.sample(begun, warm=warm, effort=effort, where=subject.where, watch=budget.watch)


def choice(subject: Subject, speed: Speed, solved: Solved, scores: dict[str, float]) -> Choice:
    """A timed row as a choice."""
    asked = {str(variant): schedule for (variant, _), schedule in solved.items()}
    schedule = asked[speed.row.method]
    return Choice(
        method=speed.row.method,
        schedule=schedule.text,
        speedup=speed.speedup,
        marked=speed.misses_latency,
        kept=kept(subject.model, schedule.blocks, speed.row.counts),
        top1=scores.get(speed.row.method),
    )


def kept(model: torch.nn.Module, after: Sequence[int], counts: Sequence[int]) -> float:
    """The body tokens that go on after a block as a share of the patches, mean over all blocks.

    after: the reducing blocks; counts: body tokens after each of them.
    """
    left_after = dict(zip(after, counts))
    patches = n = model.patch_embed.num_patches
    leaving = []
    for block in range(len(model.blocks)):
        n = left_after.get(block, n)
        leaving.append(n / patches)
    return sum(leaving) / len(leaving)


def ranked(choices: Sequence[Choice]) -> list[Choice]:
    """The choices, best first: those that meet the latency, then by accuracy if known, otherwise by tokens kept."""

    def place(one: Choice) -> tuple[bool, float]:
        return one.marked, -(one.kept if one.top1 is None else one.top1)

    return sorted(choices, key=place)


def accuracies(subject: Subject, grid: Grid, solved: Solved, part: Part, watch: Watch) -> dict[str, float]:
    """The top-1 of every solved method off the shelf, and of the unreduced model under "none"."""
    methods = [(variant, schedule) for (variant, _), schedule in solved.items() if isinstance(schedule, Schedule)]
    todo = [(Variant("none"), Schedule("none")), *methods]
    found: dict[str, float] = {}
    start = time.monotonic()
    for number, (variant, schedule) in enumerate(todo):
        spent = time.monotonic() - start
        watch("evaluating off the shelf", number / len(todo), spent / max(number, 1) * (len(todo) - number))
        model = subject.reduce(subject.model, variant, schedule)
        found[str(variant)] = evaluate(model, part=part, batch_size=grid.batch_sizes[0], dtype=grid.dtypes[0]).top1
    return found


def timed_everywhere(
    subject: Subject, request: Request, winner: Variant, best: Choice, budget: TimeBudget
) -> list[Place]:
    """Time the winner at every batch size, dtype and mode of the request."""
    counts = tuple(int(k) for k in best.schedule.partition("@")[0].split(","))
    schedule = Schedule(best.schedule, request.schedule.blocks, kind=Kind.COUNTS, counts=counts)
    grid = Grid(
        (winner,), schedules=(schedule,), batch_sizes=request.batch_sizes, dtypes=request.dtypes, modes=request.modes
    )
    timed = timed_alone(subject, grid=grid, solved={}, budget=budget, share=PLACES)
    return [
        Place(row.row.batch, dtype=row.row.dtype, mode=row.row.mode, speedup=row.speedup)
        for group in timed.groups
        for row in speeds.speeds(timed, group)
        if row.row.role == "reduced"
    ]


def code(winner: Variant, schedule: str) -> list[str]:
    """The two lines of Python that use a method."""
    settings = "".join(f", {name}={value!r}" for name, value in winner.settings)
    return ["import tpbench", f'model = tpbench.reduce(model, "{winner.method}", "{schedule}"{settings})']
