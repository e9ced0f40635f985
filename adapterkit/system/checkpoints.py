"""Reading the checkpoints that training scripts write."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "ema")
"""Under which keys training scripts keep the state dict, beside other things."""

_HOLDERS = ("module", "model", "sam", "net", "network")
"""What modules that hold a model call it; where it begins every key, it is no part of the name."""

_ANYWHERE = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What PyTorch's wrappers add to keys, at the top or at a module within."""

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.pth`/`.pt` checkpoint or a safetensors file, on the CPU.

    A checkpoint that keeps it beside other things, under "state_dict" or "model" say, is unwrapped,
    and what wrappers add to its keys is dropped, see `tensors_only`. Only tensors, plain
    containers, NumPy's numbers and arrays and the options that argparse gives are read from a
    pickle: nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or holds more than that; the message names the object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_harmless()):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        what = (
            f"It holds a {refused[1]}" if refused else "It is damaged, or it holds Python objects"
        )
        raise ValueError(
            f"{path} is not a checkpoint of tensors alone. {what}, which adapterkit does not "
            "load since that can run code from the file; save the state dict alone"
        ) from error
    except OSError:
        raise
    except Exception as error:  # On bytes that are no pickle, the unpickler fails in any way.
        raise ValueError(f"{path} is not a readable checkpoint: {error!r}") from error
    while isinstance(loaded, dict):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            break
        loaded = inner
    return tensors_only(loaded, str(path))


def tensors_only(state_dict: Any, source: str) -> dict[str, Tensor]:
    """`state_dict` with its keys as the model itself has them.

    What `torch.compile` and sharding add to keys is dropped wherever it is, and so are names that
    every key begins with because the model was within another: "module." of data parallelism and
    moving averages, "model.", "sam.", "net.".

    Raises:
        ValueError: it is not a dict of tensors; the message names `source`.
    """
    if not isinstance(state_dict, dict) or not state_dict:
        raise ValueError(f"{source} holds no state dict but a {type(state_dict).__name__}")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{source} holds no state dict: {key!r} is a {type(value).__name__}, not a tensor"
            )
    # Beside an averaged model's weights lies the number of those that were averaged.
    found = {
        _ANYWHERE.sub("", key): value for key, value in state_dict.items() if key != "n_averaged"
    }
    while (first := _common_first_name(found)) in _HOLDERS:
        found = {key.removeprefix(f"{first}."): value for key, value in found.items()}
    return found


def _common_first_name(tensors: Mapping[str, Tensor]) -> str | None:
    names = {key.partition(".")[0] for key in tensors}
    return names.pop() if len(names) == 1 else None


def _harmless() -> list[Any]:
    """NumPy's numbers and arrays, under the names that its versions give them, and options."""
    multiarray = np._core.multiarray  # pyright: ignore[reportAttributeAccessIssue]
    functions = (multiarray.scalar, multiarray._reconstruct)
    return [
        *functions,
        *((each, f"numpy.core.multiarray.{each.__name__}") for each in functions),
        np.ndarray,
        np.dtype,
        *(
            type(np.dtype(code))
            for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"
        ),
        argparse.Namespace,
    ]
