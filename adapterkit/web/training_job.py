"""Training on what was accepted: `adapterkit train` in a process of its own, and what comes of it.

The process has a low priority and half of the cores, so that the page stays usable. Its progress is
read from its run folder, .adapterkit/runs/NUMBER. What the job is at lies in a file beside, so that
a server that was killed finds a training that still runs, or one that can go on. A server that ends
stops it; it can go on later.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from adapterkit.system.files import atomic_write
from adapterkit.system.lock import FolderLockedError, locked_folder
from adapterkit.training.settings import enough_epochs
from adapterkit.web.held_out import dice_of, write_split
from adapterkit.web.model import Model
from adapterkit.web.training_record import (
    Job,
    TrainingWish,
    log_tail,
    read_curve,
    read_job,
    write_job,
)
from adapterkit.web.workspace import Workspace

_EPOCHS = 12
"""Of a training by default; few images take more."""


class TrainingJob:
    """The trainings of a work list, one at a time.

    Args:
        workspace: whose accepted images are trained on.
        model: gets the adapters.
        checkpoint: of the model, as `adapterkit train` takes it; None: the small one.
        group: what images of one patient share in their names, as `adapterkit train` takes it.
        changed: called when there is another adapter.
    """

    def __init__(
        self,
        workspace: Workspace,
        model: Model,
        checkpoint: Path | None = None,
        group: str | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._workspace = workspace
        self._model = model
        self._checkpoint = checkpoint
        self._group = group
        self._changed = changed
        self._own = workspace.worklist.own
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._stopping = False
        self._job = read_job(self._own)
        if self._job is not None and self._job.status == "running":
            self._watch()

    # What users ask

    def start(self, wish: TrainingWish) -> None:
        """Train on all accepted images.

        Raises:
            ValueError: a training runs, or too few images are accepted.
        """
        with self._lock:
            self._check_idle()
            if self._job is not None and self._job.offer:
                self.dismiss()
            accepted = self._accepted()
            parts = write_split(self._workspace.worklist, accepted, self._group)
            number = self._next_number()
            train = sum(part == "train" for part in parts.values())
            epochs = wish.epochs or enough_epochs(_EPOCHS, train, wish.batch_size or 8)
            options = self._options(number, replace(wish, epochs=epochs))
            held_out = tuple(name for name, part in parts.items() if part == "test")
            self._put(
                Job(number, "running", len(accepted), epochs, held_out, self._workspace.adapter)
            )
            self._launch(options)

    def resume(self) -> None:
        """Let a training that was stopped go on.

        Raises:
            ValueError: there is none.
        """
        with self._lock:
            self._check_idle()
            if self._job is None or self._job.status != "stopped":
                raise ValueError("no training was stopped: begin a new one")
            self._put(replace(self._job, status="running", message=""))
            self._launch(["--resume", str(self._run_folder)])

    def stop(self) -> None:
        """Stop the training after its present step; it can go on later. Waits until it has ended.

        Raises:
            ValueError: none runs.
        """
        with self._lock:
            if self._job is None or self._job.status != "running":
                raise ValueError("no training runs")
            self._stopping = True
            self._signal(signal.SIGTERM)
            watcher = self._watcher
        if watcher is not None:
            watcher.join(20)
            if watcher.is_alive():
                self._signal(signal.SIGKILL)
                watcher.join()

    def use(self) -> None:
        """Use the adapter that is offered from now on; the one before stays.

        Raises:
            ValueError: none is offered.
        """
        with self._lock:
            job = self._offered()
            self._workspace.use(job.name)
            self._put(replace(job, offer=False, message=f"{job.name} is in use."))
        self._changed()

    def dismiss(self) -> None:
        """Do without the adapter that is offered; its run folder stays.

        Raises:
            ValueError: none is offered.
        """
        with self._lock:
            job = self._offered()
            self._forget(job)
            self._put(replace(job, offer=False, message=f"{job.name} was dismissed."))

    def close(self) -> None:
        """Stop what runs, as the server ends."""
        if self._job is not None and self._job.status == "running":
            self.stop()

    def told(self) -> dict[str, Any] | None:
        """The job for the page; None where there was none yet."""
        job = self._job
        if job is None:
            return None
        curve = read_curve(self._run_folder)
        return {
            **{key: value for key, value in asdict(job).items() if key not in ("process",)},
            "name": job.name,
            "epoch": len(curve),
            "curve": curve,
            "log_tail": log_tail(self._log_file) if job.status in ("running", "failed") else "",
        }

    # The process

    @property
    def _run_folder(self) -> Path:
        assert self._job is not None
        return self._own / "runs" / f"{self._job.number:03d}"

    def _options(self, number: int, wish: TrainingWish) -> list[str]:
        worklist = self._workspace.worklist
        given = {
            "--checkpoint": self._checkpoint,
            "--group": self._group,
            **{f"--{key.replace('_', '-')}": value for key, value in asdict(wish).items()},
        }
        return [
            str(worklist.folder.resolve()),
            *("--format", "annotated"),
            *("--split", str(worklist.own.resolve() / "split_now.json")),
            *("--out", str((self._own / "runs" / f"{number:03d}").resolve())),
            *(str(part) for key, value in given.items() if value for part in (key, value)),
        ]

    def _launch(self, options: Sequence[str]) -> None:
        runs = self._own / "runs"
        runs.mkdir(exist_ok=True)
        threads = str(max(1, (os.cpu_count() or 2) // 2))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "COLUMNS": "100",
        }
        self._stopping = False
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*_command(), *options],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl+C in the server's terminal is the server's. In a session of its own, Linux
                # would share the processor between sessions, whatever `nice` says.
                process_group=0,
            )
        assert self._job is not None
        self._put(replace(self._job, process=self._process.pid))
        self._watch()

    def _watch(self) -> None:
        self._watcher = threading.Thread(
            target=self._wait_and_measure, name="a training", daemon=True
        )
        self._watcher.start()

    def _wait_and_measure(self) -> None:
        if self._process is not None:
            self._process.wait()
        else:
            self._wait_for_lock()
        with self._lock:
            job = self._job
            assert job is not None
            if not (self._run_folder / "metrics.json").is_file():
                self._put(replace(job, **self._why_unfinished(), process=None))
                return
        try:
            self._measure(job)
        except (ValueError, OSError) as error:
            self._put(replace(job, status="failed", message=str(error), process=None))
        except Exception:
            told = "The new adapter could not be measured; the server's output says why."
            self._put(replace(job, status="failed", message=told, process=None))
            raise

    def _wait_for_lock(self) -> None:
        """Of a training that another server, which is no more, has begun."""
        pause = threading.Event()
        while self._run_folder.is_dir():
            try:
                with locked_folder(self._run_folder):
                    return
            except FolderLockedError:
                pause.wait(1)

    def _why_unfinished(self) -> dict[str, Any]:
        resumable = (self._run_folder / "training_state.safetensors").is_file()
        if self._stopping or self._process is None:
            message = "The training was stopped" + (" and can go on." if resumable else ".")
            return {"status": "stopped" if resumable else "failed", "message": message}
        lines = [line for line in log_tail(self._log_file).splitlines() if line.strip()]
        return {"status": "failed", "message": lines[-1] if lines else "The training failed."}

    def _signal(self, number: signal.Signals) -> None:
        if self._job is not None and self._job.process is not None:
            try:
                os.kill(self._job.process, number)
            except ProcessLookupError:
                return

    # What comes of it

    def _measure(self, job: Job) -> None:
        """Load the new adapter, and compare it with the one before on the held-out images."""
        file = self._adapters / f"{job.name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file) as temporary:
            shutil.copyfile(self._run_folder / "adapter.safetensors", temporary)
        if job.name not in self._model.names:
            self._model.load(file, job.name)
        now, before = (self._dice(job, adapter) for adapter in (job.name, job.before))
        better = now is not None and now > (before or 0.0)
        done = replace(
            job,
            status="done",
            process=None,
            dice=now,
            dice_before=before,
            offer=better,
            message=self._verdict(job, now, before, better),
        )
        if not better:
            self._forget(done)
        self._put(done)

    def _dice(self, job: Job, adapter: str | None) -> float | None:
        workspace = self._workspace
        there = [name for name in job.held_out if name in self._accepted()]
        return dice_of(workspace.worklist, workspace.predictions, self._model, adapter, there)

    def _verdict(self, job: Job, now: float | None, before: float | None, better: bool) -> str:
        if now is None or before is None:
            return "There was nothing held out to compare with."
        images = f"{len(job.held_out)} held-out image{'s' * (len(job.held_out) > 1)}"
        said = f"Dice on {images}: {now:.3f}, before {before:.3f}"
        if not self._model.classes(job.before):
            said += " (with one click for each structure)"
        return f"{said}." if better else f"{said}: not better, so nothing changes."

    def _forget(self, job: Job) -> None:
        if job.name in self._model.names and self._workspace.adapter != job.name:
            self._model.remove(job.name)
        (self._adapters / f"{job.name}.safetensors").unlink(missing_ok=True)

    # Files

    @property
    def _adapters(self) -> Path:
        return self._own / "adapters"

    @property
    def _log_file(self) -> Path:
        assert self._job is not None
        return self._own / "runs" / f"{self._job.number:03d}.log"

    def _next_number(self) -> int:
        runs = self._own / "runs"
        found = [int(each.stem) for each in runs.glob("[0-9][0-9][0-9]*") if each.stem.isdigit()]
        return max([*found, self._job.number if self._job else 0]) + 1

    def _accepted(self) -> list[str]:
        # Also those that are taken up again: their masks on disk are what was accepted.
        return [name for name, each in self._workspace.worklist.images.items() if each.mask]

    def _check_idle(self) -> None:
        if self._job is not None and self._job.status == "running":
            raise ValueError("a training runs already: stop it first")

    def _offered(self) -> Job:
        if self._job is None or not self._job.offer:
            raise ValueError("no adapter is offered")
        return self._job

    def _put(self, job: Job) -> None:
        self._job = job
        write_job(self._own, job)


def _command() -> list[str]:
    """`adapterkit train`, at a low priority."""
    nice = ["nice", "-n", "15"] if shutil.which("nice") else []
    return [*nice, sys.executable, "-m", "adapterkit", "train"]


def load_trained(own: Path, model: Model) -> list[str]:
    """Load the adapters that came of earlier trainings of a folder; why others do not fit.

    Args:
        own: the folder .adapterkit.
        model: gets them.
    """
    told = []
    for file in sorted((own / "adapters").glob("trained_*.safetensors")):
        try:
            model.load(file, file.stem)
        except (ValueError, OSError) as error:
            told.append(f"{file.name}: {error}")
    return told
