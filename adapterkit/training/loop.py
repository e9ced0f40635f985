"""Training a segmenter, every structure of an image being one prompt.

What is trained is any `Promptable`, a network that needs no prompt too.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import rich
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from adapterkit.adapters.gradients import warn_of_missing_gradients
from adapterkit.data.clips import ClipPlan
from adapterkit.evaluation.evaluation import dice_of_images, select
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable
from adapterkit.system.digests import tensors_digest
from adapterkit.system.random import seeded_generator
from adapterkit.training.averages import MovingAverage
from adapterkit.training.checkpointing import checkpointed_blocks
from adapterkit.training.embeddings import cached_embeddings, has_frozen_encoder
from adapterkit.training.losses import LOSSES, low_res_target
from adapterkit.training.prompting import answers, first_prompts, validation_strategy
from adapterkit.training.settings import Settings
from adapterkit.training.state import Epoch, Progress, load_state, save_state


def train(
    segmenter: Promptable,
    training: Dataset,
    validation: Dataset,
    settings: Settings,
    *,
    accelerator: Accelerator,
    on_improvement: Callable[[Epoch], None],
    state_file: Path | None = None,
    state_minutes: float = 5,
    embeddings: Path | None = None,
    workers: int = 0,
    on_first_batch: Callable[[Mapping[str, Any], Sequence[Prompts]], None] | None = None,
) -> list[Epoch]:
    """Train what requires gradients, showing progress.

    Of sequences, with `settings.frames` above 1, each step sees clips, as `data.clips.ClipPlan`
    draws them. After each epoch the mean Dice over the validation set's labelled images and
    structures is measured, whole sequences at a time where the model looks at several frames. If
    `state_file` exists, the run goes on from there, to the same result as if it had not been
    interrupted. The file is written at the end of every epoch's steps, and whenever the last time
    is `state_minutes` ago. Ctrl-C or the termination signal lets the present step end, writes it,
    and raises KeyboardInterrupt; a second Ctrl-C raises at once.

    Args:
        segmenter: stays on the accelerator's device.
        training: samples as `data.dataset.Sample` says. If it has a method `set_epoch`, it is
            called with each epoch.
        validation: the same.
        settings: how to train.
        accelerator: from `accelerator.make_accelerator`.
        on_improvement: called in the main process after each epoch with the highest validation Dice
            so far, while `segmenter` holds what that epoch gave.
        state_file: None keeps no state. With several machines, on a disk that they share.
        state_minutes: 0 writes it after every step.
        embeddings: a folder in which image embeddings are kept, so that an image encoder that is
            not trained sees each image once; with an augmentation, every epoch's images are others.
        workers: processes that read and augment; the results do not depend on them.
        on_first_batch: called in the main process with the first batch and its prompts.

    Returns:
        The epochs, in order.

    Raises:
        ValueError: `state_file` is of another run, or activation checkpointing is asked for and
            `segmenter` has no blocks that adapterkit knows.
        FloatingPointError: the loss is not finite; the message names the images of the batch.
        OSError: the state cannot be written.
    """
    run = _Run(
        segmenter, training, validation, settings, accelerator, state_file, state_minutes, workers,
        on_first_batch if accelerator.is_main_process else None,
    )  # fmt: skip
    with ExitStack() as stack:
        if settings.activation_checkpointing:
            stack.enter_context(checkpointed_blocks(segmenter))
        bar = stack.enter_context(_progress_bar(accelerator))
        if embeddings is not None and has_frozen_encoder(segmenter):
            stack.enter_context(cached_embeddings(segmenter, embeddings))
            bar.console.print(
                f"the image encoder is not trained; embeddings are kept in {embeddings}",
                soft_wrap=True,
            )
        task = bar.add_task("training", total=run.all_steps, completed=run.done, loss="", dice="")
        while not run.finished:
            for loss in run.steps():
                bar.update(task, completed=run.done, loss=f"{loss:.4f}")
            with run.average.in_place() if run.average else nullcontext():
                epoch, is_best = run.validate()
                bar.update(task, dice=f"{epoch.validation_dice:.4f}")
                bar.console.print(
                    f"epoch {epoch.epoch}/{settings.epochs}  {epoch}", markup=False, soft_wrap=True
                )
                if is_best and accelerator.is_main_process:
                    on_improvement(epoch)
    accelerator.wait_for_everyone()
    return run.now.history


@dataclass
class _Run:
    """A training run and where it stands."""

    segmenter: Promptable
    training: Dataset
    validation: Dataset
    settings: Settings
    accelerator: Accelerator
    state_file: Path | None
    state_minutes: float
    workers: int
    on_first_batch: Callable[[Mapping[str, Any], Sequence[Prompts]], None] | None
    now: Progress = field(default_factory=Progress)
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.clips = ClipPlan(self.training, self.settings.frames)
        self.epoch_steps = len(self._plan(epoch=1))
        self.all_steps = self.settings.epochs * self.epoch_steps
        self.learning_rates = self.settings.learning_rates(self.all_steps)
        self.identity = {
            **asdict(self.settings),
            "training images": len(self.training),  # pyright: ignore[reportArgumentType]
            "base": _digest_of_frozen(self.segmenter),
            "processes": self.accelerator.num_processes,
            "mixed precision": self.accelerator.mixed_precision,
        }
        self.trained = [each for each in self.segmenter.parameters() if each.requires_grad]
        optimizer = self.settings.make_optimizer(self.trained)
        self.average = None
        if self.settings.ema is not None:
            named = dict(self.segmenter.named_parameters())
            trained = {name: each for name, each in named.items() if each.requires_grad}
            self.average = MovingAverage(trained, self.settings.ema)
        self.objective, self.optimizer = self.accelerator.prepare(
            _Objective(self.segmenter, LOSSES[self.settings.loss]), optimizer
        )
        if self.state_file is not None and self.state_file.exists():
            self.now = load_state(
                self.state_file,
                self.identity,
                self.segmenter,
                self.optimizer,
                self.accelerator.scaler,
                self.average and self.average.tensors,
            )

    @property
    def done(self) -> int:
        """Steps so far."""
        return (self.now.epoch - 1) * self.epoch_steps + self.now.step

    @property
    def finished(self) -> bool:
        dices = [each.validation_dice for each in self.now.history]
        patience = self.settings.patience
        stagnates = patience is not None and max(dices[-patience:], default=1.0) < max(
            dices[:-patience], default=0.0
        )
        return stagnates or self.now.epoch > self.settings.epochs

    def steps(self) -> Iterator[float]:
        """Take the steps that remain of the present epoch; the loss of each."""
        self.segmenter.train()
        if hasattr(self.training, "set_epoch"):
            self.training.set_epoch(self.now.epoch)  # pyright: ignore[reportAttributeAccessIssue]
        plan = self._plan(self.now.epoch)[self.now.step :]
        batches = [batch for step in plan for batch in step]
        loader = iter(DataLoader(self.training, batch_sampler=batches, num_workers=self.workers))
        with _held_interruptions() as interruptions:
            for step in plan:
                rate = self.learning_rates[self.done]
                own_loss = self._step(islice(loader, len(step)), len(step), rate)
                # Every process has to know whether any of them was interrupted.
                shared = torch.tensor([[own_loss, len(interruptions)]])
                shared = self.accelerator.gather(shared.to(self.accelerator.device))
                loss, interrupted = shared.mean(dim=0).tolist()  # pyright: ignore[reportAttributeAccessIssue]
                self.now.step += 1
                self.now.losses.append(loss)
                self.accelerator.log({"loss": loss, "learning rate": rate}, step=self.done)
                overdue = time.monotonic() - self.saved_at >= 60 * self.state_minutes
                if overdue or interrupted or self.now.step == self.epoch_steps:
                    self._save()
                if interrupted:
                    raise KeyboardInterrupt
                yield loss

    def validate(self) -> tuple[Epoch, bool]:
        """Complete the epoch whose steps are done; is its Dice the highest so far?"""
        with self.accelerator.autocast():
            dices = dice_of_images(
                self.segmenter,
                self.validation,
                seed=self.settings.seed,
                points=validation_strategy(self.settings.points),
                batch_size=self.settings.batch_size * self.settings.frames,
            )
        losses, dice = self.now.losses, float(dices.mean())
        names: tuple[str, ...] = getattr(self.validation, "structures", ())
        of_each = dict(zip(names, dices.mean(dim=0).tolist(), strict=False))
        epoch = Epoch(self.now.epoch, sum(losses) / len(losses), dice, of_each)
        self.now = Progress(epoch.epoch + 1, history=[*self.now.history, epoch])
        logged = {f"validation Dice of {name}": value for name, value in of_each.items()}
        self.accelerator.log({"validation Dice": dice, **logged}, step=self.done)
        return epoch, dice >= max(each.validation_dice for each in self.now.history)

    def _plan(self, epoch: int) -> list[list[list[int]]]:
        """The images of each batch of each step of this process, in an epoch, clip after clip.

        Processes get different batches, and equally many: a few of the first ones come twice where
        they do not divide evenly.
        """
        settings, processes = self.settings, self.accelerator.num_processes
        generator = seeded_generator(settings.seed, f"order in epoch {epoch}")
        order = torch.randperm(len(self.clips), generator=generator)
        batches = [
            [image for clip in each for image in self.clips.draw(clip, settings.seed, epoch)]
            for each in (part.tolist() for part in order.split(settings.batch_size))
        ]
        own_count = math.ceil(len(batches) / processes)
        first = self.accelerator.process_index
        own = [batches[(first + i * processes) % len(batches)] for i in range(own_count)]
        return [own[i : i + settings.accumulate] for i in range(0, own_count, settings.accumulate)]

    def _step(self, batches: Iterable[dict[str, Any]], count: int, learning_rate: float) -> float:
        """One step of the optimiser; the mean loss of this process's batches."""
        process = self.accelerator.process_index
        # For whatever else draws random numbers, such as dropout.
        generator = seeded_generator(self.settings.seed, f"step {self.done}, process {process}")
        torch.manual_seed(generator.initial_seed())
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        losses: list[float] = []
        for batch in batches:
            is_last = len(losses) == count - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.objective):
                loss = self._loss(batch)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise FloatingPointError(
                        f"the loss is {losses[-1]} in epoch {self.now.epoch}, on "
                        f"{list(batch['name'])}; look at these images, or lower the learning rate"
                    )
                self.accelerator.backward(loss / count)
        if self.done == 0:
            warn_of_missing_gradients(self.segmenter)
        if self.settings.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.trained, self.settings.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.done + 1)
        return sum(losses) / len(losses)

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        device, frames = self.accelerator.device, self.settings.frames
        images = batch["image"].to(device)
        # Frames without a mask are encoded beside the others, and not asked about.
        labelled = torch.as_tensor(batch.get("labelled", [True] * len(images)))
        labelled = labelled.nonzero().flatten().tolist()
        batch = select(batch, labelled)
        masks = batch["masks"].to(device).bool()
        generators = [
            seeded_generator(self.settings.seed, f"points in epoch {self.now.epoch}, {name}")
            for name in batch["name"]
        ]

        @cache
        def embedding() -> Embedding:
            return self.segmenter.encode(images, frames).select(labelled)

        def segment(prompts: Prompts) -> Masks:
            with torch.no_grad(), self.accelerator.autocast():
                return self.segmenter.decode(embedding(), prompts)

        prompts = first_prompts(masks, self.settings.points, generators, segment)
        if self.on_first_batch is not None and self.done == 0:
            self.on_first_batch(batch, [each.to("cpu") for each in prompts])
            self.on_first_batch = None
        return self.objective(images, frames, labelled, masks, prompts, generators)

    def _save(self) -> None:
        if self.state_file is not None and self.accelerator.is_main_process:
            save_state(
                self.state_file,
                self.identity,
                self.now,
                self.segmenter,
                self.optimizer,
                self.accelerator.scaler,
                self.average and self.average.tensors,
            )
        self.saved_at = time.monotonic()


class _Objective(nn.Module):
    """The loss as a module, so that processes exchange the gradients of what the loss uses."""

    def __init__(self, segmenter: Promptable, loss: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.segmenter = segmenter
        self.loss = loss

    def forward(
        self,
        images: Tensor,
        frames: int,
        labelled: Sequence[int],
        masks: Tensor,
        prompts: Sequence[Prompts],
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        embedding = self.segmenter.encode(images, frames)
        if len(labelled) < len(images):
            embedding = embedding.select(labelled)
        found = answers(self.segmenter, embedding, prompts, masks, generators)
        return torch.stack([self._loss(each, masks) for each in found]).mean()

    def _loss(self, found: Masks, masks: Tensor) -> Tensor:
        logits, presence = found.low_res_logits, getattr(found, "presence", None)
        loss = self.loss(logits, low_res_target(masks, (logits.shape[-2], logits.shape[-1])))
        if presence is None:
            return loss
        is_there = masks.flatten(2).any(dim=2).to(presence.dtype)
        return loss + _PRESENCE * F.binary_cross_entropy_with_logits(presence, is_there)


_PRESENCE = 0.1
"""Weight of the loss on whether a structure is there at all."""


@contextmanager
def _held_interruptions() -> Iterator[list[int]]:
    """Within it, Ctrl-C and the termination signal only add to the list that it gives.

    A second Ctrl-C raises KeyboardInterrupt at once, and one that came too late for the block to
    see, at its end.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # Only that one gets signals.
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _progress_bar(accelerator: Accelerator) -> ProgressBar:
    return ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  Dice {task.fields[dice]}"),
        TimeRemainingColumn(),
        console=rich.get_console() if accelerator.is_main_process else Console(quiet=True),
    )


def _digest_of_frozen(model: nn.Module) -> str:
    """Of the parameters that training leaves as they are: of the base, where there is one."""
    frozen = {name: each for name, each in model.named_parameters() if not each.requires_grad}
    return tensors_digest(frozen)
