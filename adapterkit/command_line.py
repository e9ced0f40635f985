"""What the project's command lines share."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

Config = TypeVar("Config")


def run(main: Callable[[Config], None], config: type[Config]) -> None:
    """Call `main` with the command line's arguments, and end the process.

    A `ValueError` or `OSError`, which is what adapterkit raises for bad input, is printed as one
    line and ends with status 1; an interruption ends with status 130.
    """
    try:
        main(tyro.cli(config, description=sys.modules["__main__"].__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
