"""The command `adapterkit env`."""

import os
import platform
import re
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, requires, version

from adapterkit.system.command_line import console


def env() -> None:
    """Print versions and machine, for the report of a fault.

    Example: adapterkit env > env.txt
    """
    import torch

    extras = _packages_of_extras()
    versions = {name: _version(name) for names in extras.values() for name in names}
    missing = {
        extra: [name for name in names if versions[name] is None]
        for extra, names in extras.items()
        if extra
    }
    lines = {
        "adapterkit": version("adapterkit"),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "machine": f"{os.cpu_count()} {platform.machine()} cores, PyTorch uses "
        f"{torch.get_num_threads()} threads",
        "GPUs": ", ".join(map(_gpu, range(torch.cuda.device_count()))) or "none",
        "CUDA of PyTorch": torch.version.cuda or "none",
        "packages": ", ".join(f"{name} {found}" for name, found in versions.items() if found),
        "extras": ", ".join(extra for extra, names in missing.items() if not names) or "none",
        "not installed": "; ".join(
            f"of {extra}: {', '.join(names)}" for extra, names in missing.items() if names
        ),
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        if value:
            console.print(f"{name:{width}}  {value}", highlight=False, soft_wrap=True, markup=False)


def _gpu(index: int) -> str:
    import torch

    found = torch.cuda.get_device_properties(index)
    return f"{found.name} ({found.total_memory / 2**30:.0f} GiB)"


def _packages_of_extras() -> dict[str, list[str]]:
    """What adapterkit's metadata ask for, by extra; "" is the core."""
    found = defaultdict(list)
    for requirement in requires("adapterkit") or []:
        name, *_ = re.split(r"[^\w.-]", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        found[extra[1] if extra else ""].append(name)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
