"""The worker processes that read images: they have ended when the batches are left, however that happens."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tpbench.errors import DataError
from tpbench.training.data.streamed import Streamed

CPU = torch.device("cpu")


class Images(torch.utils.data.Dataset):
    """Four images. `last` happens in the worker process, before the last of them is returned."""

    def __init__(self, last) -> None:
        self.last = last

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 3:
            self.last()
        return torch.zeros(1, 2, 2), index


def unreadable() -> None:
    raise DataError("image 3 cannot be read")


def killed() -> None:
    """Die of SIGTERM, as a worker does when the whole process group is terminated."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def printed(monkeypatch) -> list[str]:
    """What Python could only print because it was raised in a `__del__`, when a worker dies as torch waits for it."""
    found = []
    shutdown = _MultiProcessingDataLoaderIter._shutdown_workers

    def interrupted(iterator: _MultiProcessingDataLoaderIter) -> None:
        first = not iterator._shutdown
        shutdown(iterator)
        if first:  # as torch's handler of SIGCHLD does, if it runs before the process is waited for
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", interrupted)
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: found.append(str(problem.exc_value)))
    return found


def test_the_workers_have_ended_when_an_image_cannot_be_read():
    with pytest.raises(DataError, match=r"^image 3 cannot be read$") as caught:
        list(Streamed(Images(unreadable), processes=1, device=CPU).batches(1))
    assert multiprocessing.active_children() == []
    del caught


def test_the_workers_have_ended_when_the_batches_are_left_early():
    batches = Streamed(Images(lambda: None), processes=1, device=CPU).batches(1)
    next(batches)
    assert len(multiprocessing.active_children()) == 1, "control"
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_while_the_batches_are_left_prints_no_traceback(printed):
    batches = Streamed(Images(lambda: None), processes=1, device=CPU).batches(3)
    next(batches)
    batches.close()
    assert multiprocessing.active_children() == []
    assert printed == []


def test_control_left_to_torch_it_does(printed):
    batches = iter(torch.utils.data.DataLoader(Images(lambda: None), batch_size=3, num_workers=1))
    next(batches)
    del batches
    assert ["killed by signal: Terminated" in text for text in printed] == [True]


def test_a_worker_that_is_killed_while_it_reads_is_an_error():
    with pytest.raises((RuntimeError, OSError, EOFError)):  # by torch's handler, or by what the worker did not send
        list(Streamed(Images(killed), processes=1, device=CPU).batches(1))
    assert multiprocessing.active_children() == []
