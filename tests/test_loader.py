"""Loading: every draw depends on its key alone, whatever the number of workers."""
from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch

from utility.system.errors import UserError
from utility.training.loader import (
    DeviceBatches,
    Turns,
    stopped_at_the_end,
    training_loader,
    validation_loader,
)

CPU = torch.device("cpu")


class Numbered:
    """Patch i holds i everywhere, but for a corner that shows how it was turned."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        patch = np.full((3, 4, 4), index, np.float32)
        patch[0, 0, 1] = -1
        return patch


class Broken(Numbered):
    def __getitem__(self, index: int) -> np.ndarray:
        raise UserError(f"x.lmdb has no record {index:08d}; build it again.")


def passed(loader, number: int, first: int = 0) -> list[torch.Tensor]:
    """The batches of a pass over one database, from `first` on."""
    steps = sum(loader.batch_sampler.passes)
    loader.batch_sampler.set_position(number * steps + first, (number + 1) * steps)
    return list(loader)


def numbers(batches: list[torch.Tensor]) -> list[float]:
    return [n for batch in batches for n in batch[:, 1, 0, 0].tolist()]


def test_a_pass_takes_every_patch_once_and_the_last_few_are_a_batch_too():
    batches = passed(training_loader([Numbered(11)], 3, seed=1), 0)
    assert ([len(batch) for batch in batches] == [3, 3, 3, 2]
            and sorted(numbers(batches)) == list(range(11)))


def test_the_order_changes_with_the_pass_and_with_the_seed_alone():
    def order(seed, number):
        return numbers(passed(training_loader([Numbered(50)], 5, seed=seed), number))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) != order(2, 1)


def test_the_augmentation_of_a_patch_changes_with_the_pass():
    loader = training_loader([Numbered(16)], 16, seed=1, mode="spatial")
    turned = [{
        int(p[1, 0, 0]): tuple(np.argwhere(p[0].numpy() == -1)[0]) for p in passed(loader, e)[0]}
              for e in (0, 1)]
    assert len(set(turned[0].values())) > 2
    assert turned[0] != turned[1]


def test_a_band_window_is_a_run_of_neighbouring_bands_that_changes_from_patch_to_patch():
    loader = training_loader(
        [[np.arange(9, dtype=np.float32)[:, None, None] * np.ones((9, 4, 4), np.float32)] * 60], 60,
        seed=1, window=5)
    runs = [patch[:, 0, 0].tolist() for patch in passed(loader, 0)[0]]
    assert (all(run == list(np.arange(5) + run[0]) for run in runs)
            and len({run[0] for run in runs}) == 5)
    assert passed(training_loader([Numbered(4)], 4, seed=1, window=5), 0)[0].shape == (4, 3, 4, 4)


def test_databases_take_turns_by_their_share_from_the_start_of_the_training():
    loader = training_loader([Numbered(8), Numbered(100)], 4, seed=1, weights=(3, 1))
    turns = loader.batch_sampler
    turns.set_position(0, 40)
    whole = list(turns)
    assert all(len({database for database, _, _ in keys}) == 1 for keys in whole)
    assert [sum(keys[0][0] for keys in whole[i:i + 4]) for i in range(0, 40, 4)] == [1] * 10
    small = [keys for keys in whole if keys[0][0] == 0]
    # its second pass
    assert sorted(index for keys in small[2:4] for _, _, index in keys) == list(range(8))
    turns.set_position(13, 40)
    assert list(turns) == whole[13:]


@pytest.mark.parametrize(("context", "threads"), [("fork", 2), ("spawn", 1)])
def test_workers_change_nothing_and_live_through_the_passes(context, threads):
    alone = training_loader([Numbered(12)], 4, seed=5)
    helped = training_loader([Numbered(12)], 4, seed=5, threads=threads, context=context)
    with stopped_at_the_end(helped):
        for number in (0, 1, 7):
            assert all(map(torch.equal, passed(alone, number), passed(helped, number)))


def test_a_pass_goes_on_after_its_first_batches_as_if_it_had_not_stopped():
    loader = training_loader([Numbered(20)], 4, seed=3)
    whole, rest = passed(loader, 2), passed(loader, 2, first=3)
    assert len(rest) == 2 and all(map(torch.equal, whole[3:], rest))


def test_parts_of_a_batch_make_the_batch_and_its_first_patch_stands_in_where_a_part_is_empty():
    whole, *parts = (
        list(Turns([9, 5], 4, 1, part=part)) for part in ((0, 1), (0, 3), (1, 3), (2, 3)))
    for batch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        held = [share
                for k, share in enumerate(shares)
                if len(batch) * k // 3 < len(batch) * (k + 1) // 3]
        assert [key for share in held for key in share] == batch
        assert all(share == batch[:1] for share in shares if share not in held)
    assert sorted(map(len, whole)) == [1, 1, 4, 4, 4]


def test_validation_batches_are_dealt_out_to_the_parts():
    first, second = ([
        batch[:, 1, 0, 0].tolist() for batch in validation_loader(Numbered(11), 2, part=(k, 2))]
                     for k in (0, 1))
    assert (first, second) == ([[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10]])


@pytest.mark.parametrize("threads", [0, 1])
def test_bad_data_is_named_in_one_sentence_also_from_a_worker(threads):
    loader = validation_loader(Broken(1), 1, threads=threads)
    with pytest.raises(UserError) as error, stopped_at_the_end(loader):
        list(DeviceBatches(loader, CPU))
    assert str(error.value) == "x.lmdb has no record 00000000; build it again."


def test_waiting_for_data_is_measured():
    class Slow(Numbered):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    batches = DeviceBatches(validation_loader(Slow(5), 1), CPU)
    assert len(list(batches)) == 5
    assert batches.waited() > 0.09


def workers_of(loader) -> list:
    return loader._iterator._workers


@pytest.mark.parametrize(
        ("context", "number"),
        [("fork", signal.SIGINT), ("fork", signal.SIGTERM), ("spawn", signal.SIGTERM)])
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work_and_their_parent_ends_them(
        context, number):
    loader = validation_loader(Numbered(40), 1, threads=1, context=context)
    batches = iter(loader)
    next(batches)
    worker = workers_of(loader)[0]
    os.system(f"kill -{int(number)} {worker.pid}")  # by a process that is not its parent
    assert len(list(batches)) == 39 and worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert not worker.is_alive()


@pytest.mark.parametrize("threads", [0, 2])
def test_workers_end_with_the_block(threads):
    loader = validation_loader(Numbered(40), 1, threads=threads)
    with stopped_at_the_end(loader):
        next(iter(loader))
        workers = workers_of(loader) if threads else []
    assert not any(worker.is_alive() for worker in workers)
    assert len(list(loader)) == 40  # it can begin again


def test_a_killed_worker_is_one_sentence():
    class Deadly:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"A loader process was killed.*--threads"):
        list(validation_loader(Deadly(), 2, threads=1))
