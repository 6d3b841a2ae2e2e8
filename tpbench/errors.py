"""What can be wrong with a request, said in one line before any work starts."""


class UsageError(ValueError):
    """The request cannot be carried out as given: unknown name, unreachable budget, wrong folder (exit code 2)."""


class ScheduleError(UsageError):
    """A budget that cannot be reached, or a schedule that cannot be read."""


class Unreachable(ScheduleError):
    """A sound budget that one method cannot meet; the message names the nearest that it can."""


class UnsupportedModel(UsageError):
    """A model whose tokens cannot be reduced without changing what it computes."""


class DataError(UsageError):
    """A data set that is missing, unreadable or not what the recipe says."""


class CellFailed(RuntimeError):
    """One cell of the benchmark went wrong (diverged, ran out of memory); the others go on."""


class OutOfTime(Exception):
    """The time limit came. Everything is saved, and the same command continues."""
