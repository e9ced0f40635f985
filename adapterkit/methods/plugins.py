"""Methods and parts in a Python file of the user's own."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from adapterkit.methods.registry import MakeParts, method_names, register_method


def load_plugin(path: str | Path) -> tuple[str, ...]:
    """Run a Python file that registers methods and parts, once in a process.

    It runs with all that the user may do: give it files that you wrote or have read.

    Args:
        path: of the file.

    Returns:
        The names of the methods that it registered.

    Raises:
        ValueError: there is no such file, or it fails.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a Python file that registers methods")
    before = method_names()
    # Under the name that an import of it would give it, so that both are one module.
    name = path.stem
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return ()
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, whose name ends in .py")
    module = module_from_spec(spec)
    taken = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        if taken is not None:
            sys.modules[name] = taken
    return tuple(each for each in method_names() if each not in before)


def from_file(function: str) -> str:
    """The name of a method whose parts a function in a Python file makes.

    Where the function is not registered, it is so under its own name.

    Args:
        function: "mine.py:shallow", the file and the function or the registered name.

    Raises:
        ValueError: it is not written so, there is no such file, it fails, or it has no such
            function.
    """
    path, _, name = function.rpartition(":")
    if not path or not name:
        raise ValueError(f"{function}: expected a file and a function in it, such as mine.py:parts")
    load_plugin(path)
    if name not in method_names():
        make_parts: MakeParts | None = getattr(sys.modules.get(Path(path).stem), name, None)
        if not callable(make_parts):
            raise ValueError(f"{path} has no function {name}, and registers no method {name!r}")
        register_method(name)(make_parts)
    return name
