"""A Ray cluster, for as long as it is used."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adapterkit.system.extras import require


@contextmanager
def ray_cluster(address: str | None, **options: Any) -> Iterator[Any]:
    """Within it, the module `ray` is connected to a cluster; if it was before, it stays so.

    Args:
        address: of the cluster, as `ray.init` takes it; None starts one on this machine.
        **options: of `ray.init`.

    Yields:
        The module `ray`.

    Raises:
        MissingExtraError: Ray is not installed.
        OSError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells its makers otherwise.
    require("cluster", "ray", "pyarrow")
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address, **options)
    except Exception as error:  # Ray raises just that where its own processes do not start in time.
        raise OSError(f"there is no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
