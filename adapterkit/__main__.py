"""Adapters of vision transformers, and what is done with them.

With methods and parts of your own: adapterkit --plugin mine.py COMMAND ...
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from adapterkit.system.ending import end_when_interrupted

COMMANDS = {
    "train": "Adapt a Segment Anything model to images of your own, and measure it.",
    "inspect": "Show what an adapter file holds, without its base.",
    "methods": "List the methods, and what each trains and stores on a given base.",
    "check": "Say what a data set holds, and what is wrong with it.",
    "predict": "Segment images: files, and folders with their subfolders.",
    "evaluate": "Compare masks with masks: Dice, IoU and distances of each structure.",
    "measure": "Measure echocardiograms: volumes and ejection fraction from masks of apical views.",
    "merge": "Fold an adapter's LoRA, peft and trained copies into its base.",
    "convert": "Make an adapter file of a published implementation's checkpoint.",
    "export": "Write a model with its adapter as files that run without adapterkit.",
    "serve": "Annotate images in a browser, train on them, and annotate the rest faster.",
    "push": "Put an adapter file on the Hugging Face Hub, with a model card.",
    "pull": "Get an adapter file from the Hugging Face Hub.",
    "env": "Print versions and machine, for the report of a fault.",
}
"""Each is the function of its name in `commands/`, which begins its docstring with this line."""


def main() -> None:
    """Run the command line's command."""
    end_when_interrupted()
    from tyro.extras import SubcommandApp

    from adapterkit.system.allocator import keep_freed_memory
    from adapterkit.system.command_line import one_line_errors

    app = SubcommandApp()
    with one_line_errors():
        _load_plugins()
        if "--plugin" in sys.argv[2:]:
            raise ValueError(
                f"--plugin stands before the command: adapterkit --plugin FILE.py {sys.argv[1]} ..."
            )
        for name, summary in COMMANDS.items():
            # Only the command that is run is imported, and has its options worked out.
            if sys.argv[1:2] == [name]:
                app.command(name=name)(command(name))
            else:
                app.command(name=name, help=summary)(_other)
        keep_freed_memory()
        app.cli(prog="adapterkit", description=__doc__)


def command(name: str) -> Callable[..., Any]:
    """The function of a command."""
    return getattr(import_module(f"adapterkit.commands.{name}"), name)


def _load_plugins() -> None:
    """Run the files that `--plugin` names before the command, which is left as if alone."""
    while sys.argv[1:2] == ["--plugin"]:
        if len(sys.argv) < 3:
            raise ValueError("--plugin: expected a Python file that registers methods or parts")
        from adapterkit.methods import load_plugin

        load_plugin(sys.argv[2])
        del sys.argv[1:3]


def _other() -> None:
    """Stands for a command that is not run."""


if __name__ == "__main__":
    main()
