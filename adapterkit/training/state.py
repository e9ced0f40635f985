"""Where a training run stands, as one file from which it goes on as if it had never stopped.

A safetensors file: the trained tensors and buffers as `model.<name>`, the optimiser's as
`optimizer.<state>.<name of the parameter>`, and a JSON object in the header for the rest. Nothing
random needs saving, because all that is random in training depends on the seed, the epoch, the
step and the image's name alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter
from torch.optim import Optimizer

from adapterkit.system.files import check_metadata, check_tensors, save_tensors
from adapterkit.training.settings import Settings

_KEY = "adapterkit training state"
_DEFAULTS = {each.name: each.default for each in fields(Settings)}


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training came to: mean loss, and mean validation Dice in [0, 1]; the same
    of each structure, where they have names."""

    epoch: int
    loss: float
    validation_dice: float
    structures: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        of_each = ", ".join(f"{name} {dice:.4f}" for name, dice in self.structures.items())
        of_each = f" ({of_each})" if len(self.structures) > 1 else ""
        return f"loss {self.loss:.4f}  validation Dice {self.validation_dice:.4f}{of_each}"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: the present one, from 1.
        step: optimiser steps done in it.
        losses: of its batches so far.
        history: the epochs that are complete, with their validation.
    """

    epoch: int = 1
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[Epoch] = field(default_factory=list)


def save_state(
    path: Path,
    run: Mapping[str, Any],
    progress: Progress,
    model: nn.Module,
    optimizer: Optimizer,
    scaler: GradScaler | None,
    averages: Mapping[str, Tensor] | None = None,
) -> None:
    """Write where a run stands, atomically.

    Args:
        path: the file.
        run: what identifies the run, of JSON values; `load_state` compares it.
        progress: how far it has come.
        model: whose parameters that require gradients, and buffers, are saved.
        optimizer: of these parameters, or of some.
        scaler: of the gradients, in half precision.
        averages: what else changes, by name.

    Raises:
        OSError: the file cannot be written; the one before is as it was.
    """
    tensors = {f"model.{name}": value for name, value in _changing(model).items()}
    names = _names(model, optimizer)
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            tensors[f"optimizer.{key}.{names[index]}"] = value
    tensors |= averages or {}
    scaling = None if scaler is None else scaler.state_dict()
    header = {"run": run, "progress": asdict(progress), "scaler": scaling}
    save_tensors(path, tensors, {_KEY: json.dumps(header)})


def load_state(
    path: Path,
    run: Mapping[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    scaler: GradScaler | None,
    averages: Mapping[str, Tensor] | None = None,
) -> Progress:
    """Put a saved run's tensors into `model`, `optimizer` and `averages`; the arguments are
    `save_state`'s. A setting that the file does not name has its default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or foreign, or is the state of another run; the message names
            what differs, and model and optimizer are as before.
    """
    header, tensors = _read(path)
    for key in {**run, **header["run"]}:
        was, now = header["run"].get(key, _DEFAULTS.get(key)), run.get(key)
        if was != now:
            raise ValueError(
                f"{path} is the state of a run with {key} {_short(was)}, and this one has "
                f"{_short(now)}; resume with what the run was started with"
            )
    own = _changing(model)
    names = _names(model, optimizer)
    saved = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    for key in {**own, **saved}:
        if key not in saved or key not in own or saved[key].shape != own[key].shape:
            raise ValueError(f"{path} is the state of another model: {key} differs")
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, kind, name = key.split(".", 2)
            states.setdefault(names.index(name), {})[kind] = value
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(saved[key])
        for key, value in (averages or {}).items():
            value.copy_(tensors[key])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    if scaler is not None:
        scaler.load_state_dict(header["scaler"])
    return _progress(header)


def read_progress(path: Path) -> Progress:
    """How far the run of a state file has come, without its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or foreign.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no training state at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        check_metadata(metadata)
        return _progress(json.loads(metadata[_KEY]))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no training state: {error!r}") from error


def _progress(header: Mapping[str, Any]) -> Progress:
    said = dict(header["progress"])
    history = [Epoch(**epoch) for epoch in said.pop("history")]
    return Progress(**said, history=history)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"no training state at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        check_metadata(metadata)
        check_tensors(tensors, metadata)
        return json.loads(metadata[_KEY]), tensors
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a whole training state: {error!r}") from error


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that require gradients, and buffers."""
    state = model.state_dict(keep_vars=True)
    return {k: v for k, v in state.items() if not isinstance(v, Parameter) or v.requires_grad}


def _names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Of what an optimiser trains, in its order."""
    names = {each: name for name, each in model.named_parameters()}
    return [names[each] for group in optimizer.param_groups for each in group["params"]]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
