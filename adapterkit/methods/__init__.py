"""Methods, each a list of parts under a name: the published ones, and what was learned from SAMUS.

Importing this package registers those that come with adapterkit. A new one is a file beside them;
yours is a function with `register_method` wherever you define it.
"""

from adapterkit.methods import (
    autosamus,
    medsam,
    msa,
    samed,
    samed_auto,
    samus,
    samus_plus,
    samus_plus_video,
    samus_video,
)
from adapterkit.methods.plugins import from_file, load_plugin
from adapterkit.methods.registry import (
    Method,
    Schedule,
    find_method,
    method_names,
    parts_of,
    register_method,
)

__all__ = [
    "Method",
    "Schedule",
    "autosamus",
    "find_method",
    "from_file",
    "load_plugin",
    "medsam",
    "method_names",
    "msa",
    "parts_of",
    "register_method",
    "samed",
    "samed_auto",
    "samus",
    "samus_plus",
    "samus_plus_video",
    "samus_video",
]
