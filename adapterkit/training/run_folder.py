"""The folder that a recipe's run writes to, and from which an interrupted run goes on."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from adapterkit.system.files import atomic_write, is_new_folder

Config = TypeVar("Config")


def new_folder(out: Path | None, recipe: str) -> Path:
    """A folder for results, made by the main process; every process gets the same.

    Args:
        out: new or empty; None for a new one under runs/, named by the recipe and the time.
        recipe: what the run is of.

    Raises:
        ValueError: `out` exists and is not an empty folder.
    """
    folder = out or Path("runs") / recipe / time.strftime("%Y-%m-%d_%H-%M-%S")
    if PartialState().is_main_process:
        if not is_new_folder(folder):
            raise ValueError(f"--out {folder} exists and is not an empty folder; name another")
        folder.mkdir(parents=True, exist_ok=True)
    shared = [folder]
    broadcast_object_list(shared)
    return shared[0]


def as_configured(config: Any) -> Any:
    """The configuration of the interrupted run that `config` resumes; else `config` itself.

    Args:
        config: a dataclass with the fields `out` and `resume`, each field with a default.

    Raises:
        ValueError: other options are given beside `resume`, or as `interrupted_run`.
    """
    resume = config.resume
    if resume is None:
        return config
    if config != type(config)(resume=resume):
        raise ValueError("--resume goes on as the run was configured; drop the other options")
    return replace(interrupted_run(resume, type(config)), resume=resume)


def open_run(config: Any, name: str, **decided: Any) -> Path:
    """The folder of a run, new or resumed, with its configuration in config.json.

    Args:
        config: as `as_configured` takes it.
        name: of a new folder, where the configuration names none.
        **decided: what the configuration left open.

    Raises:
        ValueError: as `new_folder`.
    """
    folder = config.resume or new_folder(config.out, name)
    places = {
        each.name: place.resolve()
        for each in fields(config)
        if isinstance(place := getattr(config, each.name), Path) and each.name != "out"
    }
    if PartialState().is_main_process:
        found = replace(config, **{**places, **decided, "resume": None})
        write_json(folder / "config.json", asdict(found))
    return folder


def subfolder(folder: Path, name: str) -> Path:
    """A folder within a run's, there for every process."""
    state, found = PartialState(), folder / name
    if state.is_main_process:
        found.mkdir(exist_ok=True)
    state.wait_for_everyone()
    return found


def interrupted_run(folder: Path, config: type[Config]) -> Config:
    """The configuration of an interrupted run.

    Args:
        folder: of the run.
        config: the dataclass of which `write_json` wrote `asdict` to config.json.

    Raises:
        ValueError: `folder` is not the folder of a run, or the run is finished.
    """
    path = folder / "config.json"
    if not path.is_file() and folder.is_dir() and not any(_visible(folder)):
        raise ValueError(
            f"--resume {folder}: the run there had not begun when it was stopped; start it anew"
        )
    if not path.is_file():
        raise ValueError(f"--resume {folder}: expected the folder of a run, with a config.json")
    if (folder / "metrics.json").exists():
        raise ValueError(f"--resume {folder}: this run is finished; its results are there")
    hints = get_type_hints(config)
    try:
        values = {
            name: Path(value) if value is not None and Path in get_args(hints[name]) else value
            for name, value in json.loads(path.read_text()).items()
        }
        return config(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not this recipe's configuration: {error}") from error


def _visible(folder: Path) -> Iterator[Path]:
    return (each for each in folder.iterdir() if not each.name.startswith("."))


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Within it, an interruption says how to go on: with the run, where the folder is a part of
    one, as a fold's is."""
    try:
        yield
    except KeyboardInterrupt:
        is_part = (folder.parent / "config.json").exists()
        run = folder.parent if is_part else folder
        how = f"interrupted; go on with --resume {run}" if PartialState().is_main_process else ""
        raise KeyboardInterrupt(how) from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, atomically; what JSON has no type for, such as paths, as text."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def write_text(path: Path, content: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(content)
