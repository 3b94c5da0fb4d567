"""Training: from a configuration to a run folder, read top to bottom in the order it runs.

    config = configure({"data": "data/lmdb/sample.lmdb", "recipe": "fast", "iterations": 300})
    result = train(config)                                # result.best is the checkpoint to test

Every random draw is keyed: weights by the seed, the order of a pass over a database by
(seed, pass), a variant of a patch by (seed, pass, patch), a random scale and the noise by
(seed, iteration). The state is saved whole. So a run that is resumed from any of its checkpoints,
also from one made inside an epoch, gives the numbers of a run that was never interrupted: on a
processor, with the same number of threads, to the last bit. On a GPU some convolutions, among which
cuDNN chooses by trying, add in an order of their own. Two runs there draw the same numbers and
agree but for rounding.

Several processes (see `utility.system.distributed`) make each step together. Each process computes
its part of the step's patches, and the gradients are added. Draws, rate and position count steps
and patches of the whole batch, so the number of processes changes the rounding alone, and a run may
go on with another number of them.
"""
from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from utility.system import distributed
from utility.system.devices import ask_deterministic
from utility.system.errors import Interruption, UserError
from utility.system.files import shown
from utility.system.memory import out_of_memory
from utility.system.progress import track
from utility.training.configuration import TrainingConfig
from utility.training.loader import (
    DeviceBatches,
    stopped_at_the_end,
    training_loader,
    validation_loader,
)
from utility.training.plan import Plan, prepare
from utility.training.remarks import epoch_line, far_below, what_is_next, without_gain
from utility.training.runs import NoFolder, RunFolder, new_run_folder
from utility.training.state import State
from utility.training.steps import train_step
from utility.training.validation import validate


@dataclass(frozen=True)
class Result:
    """The result of a training: the checkpoints on disk, and the last validation."""

    run: Path
    best: Path | None
    last: Path | None
    iteration: int
    psnr: float | None                 # dB
    interrupted: bool


def train(config: TrainingConfig, plan: Plan | None = None, *, next_line: bool = True) -> Result:
    """Train as `config` says (`plan` is `prepare(config)`, where that was done already).

    `next_line` says at the end how to go on or to test.

    Ctrl-C, or SIGTERM, lets the step end and saves the state; a second one stops at once.

    Raises UserError: bad input as in `prepare`, a run folder that holds another run, a network that
    cannot be compiled, a loss that is no longer finite, a GPU without enough memory, a full disk.
    """
    if config.deterministic:
        ask_deterministic()
    plan = plan or prepare(config)
    if plan.device.type == "cuda":
        torch.cuda.set_device(plan.device)
    state = plan.state()
    path = Path(config.run_dir
                or distributed.of_first(new_run_folder(config.prefix or config.arch)))
    own = config.resume is not None and path.resolve() == Path(config.resume).resolve().parent
    if state.finished and not distributed.restarts():
        _refuse_finished(config, state, path if own else None)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    # batches have few shapes: all algorithms are tried
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.backends.cudnn.benchmark_limit = 0

    run = NoFolder(path) if distributed.rank() else RunFolder(path, own)
    run.write_origin(asdict(config) | {"run_dir": str(run.path)}, plan.device)
    run.losses.load(state.iteration)
    _introduce(run, plan, state)
    if state.history:  # a kill between last.pth and these files leaves them an epoch behind
        _write_history(run, state)
    if config.tensorboard:
        # Inside an epoch the last step is written again: its epoch may have ended at this step
        # before the run was killed.
        run.open_board(state.iteration + (state.step == 0) if state.iteration else None)
    stop = Interruption(patient=distributed.launched(), answers=distributed.rank() == 0)
    try:
        with stop:
            _Loop(plan, state, run, stop).run_epochs()
    except KeyboardInterrupt:
        stop.requested = True
        run.say("stopped at once; what follows the last checkpoint is lost")
    except RuntimeError as error:
        if not out_of_memory(error):
            if (config.compile
                    and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))):
                reason = str(error).strip().splitlines() or [""]
                raise UserError(f"{config.arch} cannot be compiled here ({type(error).__name__}: "
                                f"{reason[0].rstrip('.')}); leave --compile out, or install a C++ "
                                "compiler.") from error
            raise
        shapes = " or ".join("x".join(map(str, source.shape)) for source in plan.sources)
        raise UserError(f"The GPU has too little memory for a batch of {config.batch} patches of "
                        f"{shapes}; give a smaller -b, or --checkpoint-activations.") from error
    finally:
        last, best = (path if path.exists() else None
                      for path in (run.path / "last.pth", run.path / "best.pth"))
        lines = what_is_next(run, best, last, stop.requested, plan.cards) if next_line else []
        for text, warning in [(text, True) for text in without_gain(state)] + [
                (line, False) for line in lines]:
            # a log that cannot be written must not hide what ended the run
            with suppress(UserError):
                run.say(text, warning)
        run.close()
    return Result(run.path, best, last, state.iteration, state.psnr, stop.requested)


def _introduce(run: RunFolder, plan: Plan, state: State) -> None:
    """Say what will run and where, and what changed since the checkpoint that it goes on from."""
    folder = shown(run.path)
    watch = f"; watch with: tensorboard --logdir {folder} (pip install tensorboard)"
    for line in [*plan.describe(),
                 f"run       {folder}{watch if plan.config.tensorboard else ''}"]:
        run.say(line)
    if plan.changed:
        run.say(state.changes[-1], warning=True)


def _refuse_finished(config: TrainingConfig, state: State, path: Path | None) -> None:
    """Raise UserError for a complete run, after an update of its history in the folder `path`."""
    if path:
        run = RunFolder(path, resume=True)
        _write_history(run, state)
        run.close()
    more = "--patience" if state.gave_up else "--iterations" if config.iterations else "-n"
    raise UserError(f"{config.resume} has made {state.iteration} iterations ({state.epoch} "
                    f"epochs), all that were asked for; give a larger {more}.")


class _Loop:
    """The epochs of a run."""

    def __init__(self, plan: Plan, state: State, run: RunFolder, stop: Interruption) -> None:
        self.plan, self.config, self.state, self.run, self.stop = (
            plan, plan.config, state, run, stop)
        # Without gradients the network runs in blocks of rows, which a compiled one cannot: it is
        # for the steps alone.
        self.net = torch.compile(state.net) if self.config.compile else state.net
        self.saved = time.monotonic()
        self.deadline = self.saved + 60 * (self.config.minutes or math.inf)
        self.part = distributed.rank(), distributed.size()
        # reading the loss makes a GPU wait for the host
        self.every = 25 if plan.device.type == "cuda" else 1

    def ending(self) -> int:
        """2: a process was asked to stop; 1: the time is over; 0: neither. All processes ask at the
        same place, and get the same answer."""
        found = distributed.highest(
            2 if self.stop.requested else int(time.monotonic() >= self.deadline))
        if found == 2:
            self.stop.requested = True
        return found

    def run_epochs(self) -> None:
        plan, config, gpu = self.plan, self.config, self.plan.device.type == "cuda"
        threads = config.threads
        # a step on a processor takes a thousand times as long as reading its patches
        if threads is None:
            threads = min(4, (os.cpu_count() or 1) // distributed.processes_here()) if gpu else 0
        loader = training_loader([source.training for source in plan.sources], config.batch,
                                 seed=config.seed, mode=config.augment, weights=config.weights,
                                 window=config.band_window, spacing=config.band_spacing,
                                 part=self.part, threads=threads, pin=gpu)
        validation = {}
        for source in plan.sources:
            if len(source.validation):
                validation[source.name] = validation_loader(
                    source.validation, config.batch, part=self.part, threads=min(threads, 2),
                    pin=gpu)
        with ExitStack() as stack:
            for each in (loader, *validation.values()):
                stack.enter_context(stopped_at_the_end(each))
            if config.recipe == "finetune" and not self.state.iteration and not self.state.history:
                self.validate_and_save(validation)  # the weights to start from may stay the best
            if self.state.step:
                self.log_step(self.checked_loss())
            while not self.state.finished and not self.ending():
                self.validate_and_save(validation, self.run_steps(loader))

    def validate_and_save(self, validation: Mapping[str, DataLoader],
                          speed: dict[str, float] | None = None) -> None:
        """Validate, then write events, checkpoints and history; `speed` is of the last epoch, None
        before the first step."""
        state, config, run = self.state, self.config, self.run
        if self.ending() < 2:
            row, picture = validate(state, validation, self.plan.sources[0].meta.get("wavelengths"),
                                    self.stop)
        if self.ending() == 2:
            self.save("last")
            return
        row = {"epoch": state.epoch + 1 if speed else 0, "iteration": state.iteration,
               "loss": self.checked_loss() if speed else None, **row, "lr": state.lr}
        if not math.isfinite(row["val_loss"]):
            raise self.diverged()
        if config.recipe == "released":
            state.plateau.step(row["val_loss"])
        better = state.add(row) or not (run.path / "best.pth").exists()
        # Events before checkpoints: a resumed run replaces the events after its checkpoint, and
        # cannot make those before it.
        values = {name: value
                  for name, value in {**row, **(speed or {})}.items()
                  if name not in ("epoch", "iteration")}
        run.add_scalars("epoch", values, state.iteration)
        run.add_image("truth, start image, network", picture, state.iteration)
        kept = ([f"epoch_{state.epoch:03d}"] if speed and state.epoch % config.record_interval == 0
                else [])
        # last.pth records the best: best.pth exists before it
        for name in [*kept, *(["best"] if better else []), "last"]:
            self.save(name)
        _write_history(run, state, speed)
        run.say(epoch_line(row, speed))
        for text in far_below(state):
            run.say(text, warning=True)

    def save(self, name: str) -> None:
        """Write the state to NAME.pth. Raises UserError: its weights are not finite."""
        if not self.state.is_finite():
            raise self.diverged()
        self.run.flush()
        if name == "last":
            self.run.losses.write()
        if self.part[0] == 0:
            self.state.save(self.run.path / f"{name}.pth")
        self.saved = time.monotonic()

    def run_steps(self, loader: DataLoader) -> dict[str, float]:
        """Returns patches/s, the share of time spent waiting for data, seconds, and those of this
        process on all processors."""
        state, plan = self.state, self.plan
        alone = self.part[1] == 1
        gain = f", gain {state.history[-1]['gain']:+.2f} dB" if state.history else ""
        left = 0 if state.reached else max(0, plan.steps - state.step)
        loader.batch_sampler.set_position(state.iteration, state.iteration + left)
        batches = DeviceBatches(loader, plan.device)
        before = self.summed_loss()
        patches, begin, processor = 0, time.perf_counter(), time.process_time()
        with track(total=plan.total, initial=state.iteration, desc=f"epoch {state.epoch + 1}",
                   unit="step", leave=False) as bar:
            for gt, whole in zip(batches, loader.batch_sampler.sizes(), strict=True):
                train_step(state, self.net, gt, whole)
                patches += whole
                bar.update()
                if state.step % self.every == 0:
                    now = self.summed_loss()
                    self.run.losses.add(state.iteration, now[1] - before[1], now[0] - before[0])
                    loss, before = now[0] / max(1, now[1]), now
                    rate = patches / (time.perf_counter() - begin)
                    bar.set_postfix_str(
                        f"loss {loss:.3g}, lr {state.lr:.2g}{gain}, {rate:.1f} patches/s",
                        refresh=False)
                    self.log_step(loss)
                if state.reached or ((alone or state.step % self.every == 0) and self.ending()):
                    break
                if time.monotonic() - self.saved >= 60 * self.config.save_minutes:
                    self.checked_loss()
                    self.save("last")
            self.checked_loss()
            waited, seconds = batches.waited(), time.perf_counter() - begin
        return {"patches_per_s": patches / seconds, "data_wait": waited / seconds,
                "seconds": seconds,
                "processor_seconds": sum(distributed.gathered([time.process_time() - processor]))}

    def log_step(self, loss: float) -> None:
        if self.state.step % self.every == 0:
            self.run.add_scalars("step", {"loss": loss, "lr": self.state.lr}, self.state.iteration)

    def checked_loss(self) -> float:
        """The mean loss of this epoch so far; makes a GPU wait. Raises UserError: NaN."""
        total, steps = self.summed_loss()
        return total / max(1, steps)

    def summed_loss(self) -> tuple[float, int]:
        """The sum and number of this epoch's losses so far; waits and raises as `checked_loss`.

        A GradScaler leaves out the steps that overflow, which are few; any other loss that is not
        finite is the end.
        """
        total, lost = self.state.tally.tolist()
        if lost and (self.config.amp != "fp16" or lost > max(20, self.state.step / 2)):
            raise self.diverged()
        return total, self.state.step - int(lost)

    def diverged(self) -> UserError:
        last = self.run.path / "last.pth"
        kept = (f"{shown(last)} holds the state before that" if last.exists()
                else "nothing was saved yet")
        return UserError(f"The loss became NaN or infinite by iteration {self.state.iteration} "
                         f"(epoch {self.state.epoch + 1}), and training stopped; {kept}; try a "
                         "lower --lr, --clip 1, or --amp off.")


def _write_history(run: RunFolder, state: State, speed: Mapping[str, float] | None = None) -> None:
    run.write_history(state.history, speed, state.config.loss,
                      best=max(state.counted, key=state.score, default=None),
                      warnings=[*state.changes, *without_gain(state)])
