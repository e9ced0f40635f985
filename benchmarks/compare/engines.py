"""Where runs are performed: one after the other on this machine, or spread over a Ray cluster."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterkit.system.cluster import ray_cluster
from benchmarks.compare.runs import perform

Run = tuple[Path, str, int]
"""The arguments of `perform`: the comparison's folder, the system and the seed."""


def on_this_machine(runs: Sequence[Run]) -> Iterator[tuple[Run, str]]:
    """Perform the runs one after the other, each in a process of its own.

    So a run's peak memory is its own, and one that the system kills takes no other with it.

    Yields:
        Each run when it has ended, with what its process died of, or "".
    """
    context = multiprocessing.get_context("forkserver")
    # The server imports PyTorch once, and its processes need not.
    context.set_forkserver_preload([perform.__module__])
    for run in runs:
        process = context.Process(target=perform, args=run)
        process.start()
        with _termination_as_interruption():
            try:
                process.join()
            except KeyboardInterrupt:
                process.terminate()
                process.join()
                raise
        died = f"the process ended with exit code {process.exitcode}"
        if process.exitcode == -signal.SIGKILL:
            died += ", killed; out of memory?"
        yield run, died if process.exitcode else ""


def on_ray(runs: Sequence[Run], address: str | None) -> Iterator[tuple[Run, str]]:
    """Perform the runs on a Ray cluster, as many at a time as it has accelerators, or cores.

    Its machines need this code and its packages, and see the comparison's folder and the data under
    the same paths.

    Args:
        runs: all that are to be performed.
        address: of the cluster, as `ray.init` takes it; None starts one on this machine.

    Yields:
        Each run when it has ended, with what its process died of, or "".

    Raises:
        MissingExtraError: Ray is not installed.
        OSError: the cluster cannot be reached.
    """
    with ray_cluster(address) as ray:
        from ray.exceptions import RayError

        accelerators = 1 if ray.cluster_resources().get("GPU") else 0
        # A worker performs one run, whose peak memory is then its own.
        remote: Any = ray.remote(num_cpus=1, num_gpus=accelerators, max_calls=1, max_retries=0)(
            perform
        )
        waiting = {remote.remote(*run): run for run in runs}
        while waiting:
            (ended, *_), _ = ray.wait(list(waiting))
            died = ""
            try:
                ray.get(ended)
            except RayError as error:
                died = f"the worker ended: {error}"
            yield waiting.pop(ended), died


@contextmanager
def _termination_as_interruption() -> Iterator[None]:
    """Within it, the termination signal raises KeyboardInterrupt."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
