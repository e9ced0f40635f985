"""What says which of adapterkit's optional packages are missing."""

from importlib.util import find_spec

from adapterkit.system.pages import see


class MissingExtraError(ImportError):
    """A package that comes with one of adapterkit's extras is not installed."""


def require(extra: str, *packages: str) -> None:
    """Check, without importing them, that packages of an extra are installed.

    A package of adapterkit that needs them calls this in its `__init__`, and a function where it
    alone does.

    Args:
        extra: as pyproject.toml calls it.
        packages: the names under which they are imported.

    Raises:
        MissingExtraError: one is not installed; the message has the pip command.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtraError(
            f"this needs {' and '.join(missing)}, which adapterkit installs on request: "
            f'pip install "adapterkit[{extra}]"; {see("install.md")}',
            name=missing[0],
        )
