"""Independent jobs: on the cores of this machine, on a dask cluster, or on any executor of ``concurrent.futures``."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

from common.cache import Cache
from common.h5files import Arrays
from common.machine import available_cores
from common.shell import progress
from kornia_hardnet8.errors import HardNet8Error, UsageError, missing_extra

log = logging.getLogger(__name__)
Job = TypeVar("Job")

_CONNECT_S = 20
DASK = "dask://"


class JobError(HardNet8Error, RuntimeError):
    """The workers died or the cluster is gone."""


@contextmanager
def open_executor(where: str | None = None, jobs: int | None = None) -> Iterator[Executor | None]:
    """The executor of a run; None when jobs are to run one by one in this process.

    Args:
        where: ``dask://host:port`` of a scheduler whose workers have this project and see the same files; None: this
            machine.
        jobs: processes of this machine, default one a core; they start when there is work for two.

    Raises:
        UsageError: ``where`` has another form, or ``jobs`` is below 1.
        JobError: no scheduler answers.
        MissingDependencyError: dask is not installed.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    if where is not None:
        with _dask(where) as executor:
            yield executor
        return
    jobs = jobs or available_cores()
    if jobs == 1:
        yield None
        return
    # spawned: a fork of a process with torch's threads may hang
    mine = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - mine:
            process.terminate()
        raise
    pool.shutdown()


def compute_all(
    cache: Cache,
    stage: str,
    work: Sequence[tuple[Mapping[str, Any], Job]],
    function: Callable[[Job], Arrays],
    executor: Executor | None = None,
    what: str = "",
    unit: str = "job",
    keep: Callable[[Arrays], bool] | None = None,
) -> list[Arrays]:
    """The results of a stage for (configuration, job) pairs, from the cache or by ``function(job)``, in order.

    Each result is stored when it is there, so that an interrupted run goes on where it stopped.

    Args:
        cache: where results are looked up and stored; only this process writes to it.
        stage: name of the stage.
        work: configuration (the cache key) and job; jobs must be picklable for an executor.
        function: from a job to arrays; importable by its name for an executor.
        executor: where missing results are computed; None, or fewer than two of them: in this process.
        what: shown with the progress.
        unit: what a job is called there.
        keep: whether a result may be stored; default: all.

    Raises:
        JobError: the workers died. What they had finished is stored.
    """
    results: list[Arrays | None] = [cache.get(stage, configuration) for configuration, _ in work]
    missing = [index for index, arrays in enumerate(results) if arrays is None]

    def finish(index: int, arrays: Arrays) -> None:
        if keep is None or keep(arrays):
            cache.put(stage, work[index][0], arrays)
        results[index] = arrays

    if executor is None or len(missing) < 2:
        for index in progress(missing, what=what, unit=unit):
            finish(index, function(work[index][1]))
    else:
        futures: dict[Future[Arrays], int] = {}
        try:
            for index in missing:
                futures[executor.submit(_run, function, work[index][1])] = index
            for future in progress(as_completed(futures), len(futures), what, unit):
                finish(futures[future], future.result())
        except (BrokenExecutor, CancelledError) as error:
            raise JobError(
                f"{what or stage}: the workers died or were lost ({type(error).__name__}; out of memory?): what is "
                "finished is kept, run again, with fewer --jobs if memory is short"
            ) from None
        finally:
            for future in futures:
                future.cancel()
    return [arrays for arrays in results if arrays is not None]


def _run(function: Callable[[Job], Arrays], job: Job) -> Arrays:
    """One job in a worker: the workers share the cores, so each computes with one thread."""
    if multiprocessing.parent_process() is not None:
        import torch

        torch.set_num_threads(1)
    return function(job)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask(where: str) -> Iterator[Executor]:
    address = where.removeprefix(DASK)
    host, colon, port = address.rpartition(":")
    if not where.startswith(DASK) or not (host and colon and port.isdecimal()):
        raise UsageError(f"--executor {where}: expected dask://host:port, e.g. dask://127.0.0.1:8786")
    try:
        from distributed import Client
    except ImportError:
        raise missing_extra("distributed", "dask") from None
    try:
        client = Client(f"tcp://{address}", timeout=_CONNECT_S)
    except (OSError, TimeoutError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise JobError(f"--executor {where}: no dask scheduler answers there: {reason}") from None
    with client:
        workers = client.scheduler_info()["workers"]
        log.info("%s: %d workers", where, len(workers))
        if not workers:
            raise JobError(f"--executor {where}: the scheduler has no workers")
        executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)
