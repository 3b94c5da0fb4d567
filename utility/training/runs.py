"""The folder of a training run: what made it, what it said, and its numbers epoch by epoch.

    config.json  environment.json  log.txt  history.csv  steps.csv  training.json  training.png
    last.pth  best.pth  epoch_005.pth ...  events.*
"""
from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tensorboardX import SummaryWriter

from utility.report.figures import training_curve_figure
from utility.report.tables import write_csv
from utility.system.distributed import launcher
from utility.system.environment import describe_environment
from utility.system.errors import UserError
from utility.system.files import default_path, lock, replacing, write_failure, write_json
from utility.system.progress import say, warn

try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import image, scalar
except ImportError:  # they are not documented; see `PublicBoard`
    EventsWriter = None

SPEEDS = ("patches_per_s", "data_wait", "seconds", "processor_seconds")


class RunFolder:
    """Makes the folder on construction and writes everything in it but the checkpoints.

    Args:
        path: the folder.
        resume: the folder may hold a run already, which goes on; its log is appended to.

    Raises UserError: the folder holds something and `resume` is False, or it cannot be made.
    """

    def __init__(self, path: str | Path, resume: bool = False) -> None:
        self.path = Path(path)
        self.board: Board | PublicBoard | None = None
        self.losses = Losses(self.path / "steps.csv")
        # an empty one is a run that was killed before it wrote its configuration
        log = self.path / "log.txt"
        # killed before its first save
        begun = (not any(self.path.glob("[!.]*.pth"))
                 and ((self.path / "config.json").exists()
                      or (log.is_file() and not log.stat().st_size)))
        if (not (resume or begun) and self.path.exists()
                and (not self.path.is_dir() or any(self.path.iterdir()))):
            raise UserError(f"{self.path} exists already, and every run has its own folder; choose "
                            "another --run-dir, or go on with the run in it by -r -rp.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._log: TextIO | None = open(self.path / "log.txt", "a", encoding="utf-8")  # noqa: SIM115 (open for the run)
        except OSError as error:
            raise UserError(f"Cannot make the run folder {self.path} ({error.strerror}); choose a "
                            "writable --run-dir.") from error
        try:
            lock(self._log.fileno(), self.path)
        except UserError:
            self._log.close()
            raise
        for old in self.path.glob("events.*") if begun else ():
            old.unlink()

    def say(self, line: str, warning: bool = False) -> None:
        """Print a line above the bar, and log it, as is what `progress.quiet` keeps from printing.
        Raises UserError: the log cannot be written, such as on a full disk. Later lines are printed
        alone."""
        (warn if warning else say)(line)
        if self._log:
            try:
                self._log.write("warning: " * warning + line + "\n")
                self._log.flush()
            except OSError as error:
                self._close_log()
                raise write_failure(self.path / "log.txt", error) from error

    def close(self) -> None:
        if self.board:
            self.board.close()
        self._close_log()

    def _close_log(self) -> None:
        log, self._log = self._log, None
        if log:
            with suppress(OSError):  # closing tries once more to write what could not be written
                log.close()

    def write_origin(self, config: Mapping[str, Any], device: torch.device) -> None:
        """config.json (the whole resolved configuration) and environment.json."""
        write_json(self.path / "config.json", dict(config))
        write_json(self.path / "environment.json", describe_environment(device))

    def open_board(self, purge_step: int | None) -> None:
        """Write TensorBoard's events too; a resumed run's from `purge_step` on are replaced."""
        self.board = (Board if EventsWriter else PublicBoard)(self.path, purge_step)

    def add_scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """TensorBoard's values GROUP/NAME of an iteration."""
        for name, value in values.items() if self.board else ():
            if value is not None:
                self.board.add_scalar(f"{group}/{name}", value, step)

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None:
        """TensorBoard's picture (h, w, 3) of an iteration."""
        if self.board:
            self.board.add_image(name, picture, step)

    def flush(self) -> None:
        """Send TensorBoard's events to the system; a process that is killed later loses none of
        them."""
        if self.board:
            self.board.flush()

    def write_history(self, history: Sequence[Mapping[str, Any]],
                      speed: Mapping[str, float] | None = None, loss: str = "mse", *,
                      best: Mapping[str, Any] | None = None, warnings: Sequence[str] = ()) -> None:
        """history.csv and training.png: one row an epoch; and training.json: the best row, the
        last, and warnings.

        Args:
            history: the rows of the run.
            speed: `SPEEDS` of the last epoch. Those of other epochs are kept from the file.
            loss: name of the loss, for the figure.
            best: the row of best.pth; None before there is one.
            warnings: sentences for training.json; the figure shows them up to a semicolon.
        """
        path = self.path / "history.csv"
        known = {}
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                known = {row.get("epoch"): row for row in csv.DictReader(file)}
        with (replacing(path) as temporary,
              open(temporary, "w", newline="", encoding="utf-8") as file):
            writer = csv.DictWriter(file, [*history[-1], *SPEEDS], extrasaction="ignore")
            writer.writeheader()
            for row in history:
                old = known.get(str(row["epoch"]), {})
                new = speed or {} if row is history[-1] else {}
                writer.writerow({**{name: old.get(name) for name in SPEEDS}, **new, **row})
        write_json(self.path / "training.json",
                   {"best": best, "last": history[-1], "warnings": list(warnings)})
        training_curve_figure(self.path / "training.png", history, name=self.path.name,
                              loss=loss.upper(), steps=self.losses.rows,
                              note="; ".join(text.partition(";")[0] for text in warnings))


class Losses:
    """The training loss of every step, in a file: fewer than `MOST` rows, each the mean of as many
    steps as that takes."""

    MOST = 2000

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self._width = path, [], 1
        # steps of the last row, and the sum of their losses, while they are less than a row takes
        self._open = [0, 0.0]

    def load(self, iteration: int) -> None:
        """Take the rows of the file up to an iteration, from which a run goes on."""
        if iteration and self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [(int(row["iteration"]), int(row["steps"]), float(row["loss"]))
                        for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row[0] <= iteration]
            self._width = max((row[1] for row in self.rows), default=1)

    def add(self, iteration: int, steps: int, total: float) -> None:
        """`steps` more, up to `iteration`, whose losses sum up to `total`."""
        self._open[0] += steps
        self._open[1] += total
        if self._open[0] >= self._width:
            self.rows.append((iteration, self._open[0], self._open[1] / self._open[0]))
            self._open = [0, 0.0]
        if len(self.rows) == self.MOST:
            pairs = zip(self.rows[::2], self.rows[1::2], strict=False)
            self.rows = [
                (last, m + n, (m * x + n * y) / (m + n)) for (_, m, x), (last, n, y) in pairs]
            self._width = self.rows[0][1]

    def write(self) -> None:
        write_csv(self.path, [("iteration", "steps", "loss"), *self.rows])


class NoFolder:
    """Stands in for a `RunFolder` in a process that writes nothing: every method does nothing, also
    of its parts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getattr__(self, _: str) -> NoFolder:
        return self

    def __call__(self, *_: Any, **__: Any) -> None:
        pass


class Board:
    """TensorBoard's events of a run, written at once: an error arrives where it is made, and
    `flush` leaves nothing behind.

    Args:
        purge_step: of a resumed run; TensorBoard forgets what other files say of this step and of
            later ones.
    """

    def __init__(self, path: Path, purge_step: int | None = None) -> None:
        self._path = path
        self._events = EventsWriter(str(path / "events"), filename_suffix=f".{purge_step or 0}")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(step=step, summary=scalar(name, value))

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture (h, w, 3)."""
        self._write(step=step, summary=image(name, picture, dataformats="HWC"))

    def flush(self) -> None:
        try:
            self._events.flush()
        except OSError as error:
            raise write_failure(self._path / "events", error) from error

    def close(self) -> None:
        with suppress(OSError):
            self._events.close()

    def _write(self, **event: Any) -> None:
        try:
            self._events.write_event(Event(wall_time=time.time(), **event))
        except OSError as error:
            raise write_failure(self._path / "events", error) from error


class PublicBoard(SummaryWriter):
    """`Board` by the documented class of tensorboardX, where another version has no other: a thread
    of it writes events later, so an error of the disk may go unseen."""

    def __init__(self, path: Path, purge_step: int | None = None) -> None:
        super().__init__(str(path), purge_step=purge_step, filename_suffix=f".{purge_step or 0}")

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture (h, w, 3)."""
        super().add_image(name, picture, step, dataformats="HWC")


def newest_checkpoint(folder: str | Path | None = None) -> Path:
    """last.pth of a run folder, or of the run under runs/ saved last. Raises UserError."""
    found = [Path(folder) / "last.pth"] if folder else list(default_path("runs").glob("*/last.pth"))
    found = [path for path in found if path.exists()]
    if not found:
        raise UserError(f"There is no last.pth in {folder or 'the folders under runs'}, so no run "
                        "goes on; name a checkpoint by -rp.")
    return max(found, key=lambda path: path.stat().st_mtime)


def after_restart(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a command was given, for torchrun's restart of it: the run that the command began goes
    on, if it began one."""
    folders = [Path(given["run_dir"])] if "run_dir" in given else Path("runs").glob("*")
    begun = [path for path in folders if launcher() and _launcher_of(path) == launcher()]
    if not begun:
        return dict(given)
    folder = max(begun, key=lambda path: (path / "environment.json").stat().st_mtime)
    saved = ({"resume": str(folder / "last.pth"), "init": None} if (folder / "last.pth").exists()
             else {})
    return {**given, **saved, "run_dir": str(folder)}


def _launcher_of(folder: Path) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        return json.loads((folder / "environment.json").read_text()).get("launcher")
    return None


def new_run_folder(name: str) -> Path:
    """runs/NAME_DATE_TIME, a folder that does not exist yet."""
    base = default_path("runs") / f"{name}_{datetime.now():%Y%m%d_%H%M%S}"
    path, count = base, 2
    while path.exists():
        path, count = base.with_name(f"{base.name}-{count}"), count + 1
    return path
