"""Independent jobs: on the cores of this machine, on a dask cluster, or on any executor of ``concurrent.futures``."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, Protocol, TypeVar

from common.cache import Cache
from common.h5files import Arrays
from common.images import load_cv2
from common.machine import available_cores
from common.shell import progress
from kornia_hardnet8.errors import HardNet8Error, UsageError, need

log = logging.getLogger(__name__)
Job = TypeVar("Job")
A = TypeVar("A")
B = TypeVar("B")

_CONNECT_S = 20
# How long a cluster may be without workers, and how often it is asked.
_PATIENCE_S = 30.0
_ASK_EVERY_S = 5.0
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
    with _processes(jobs) as pool:
        yield pool


class Map(Protocol):
    """``map`` whose results come in the order of the items."""

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        """Results in order."""


@contextmanager
def worker_map(num_workers: int) -> Iterator[Map]:
    """Yield a :class:`Map` that runs in ``num_workers`` processes (0: in this one).

    At most two results a worker wait in memory. The results do not depend on ``num_workers``.

    Raises:
        UsageError: a negative number.
        JobError: a worker was killed.
    """
    if num_workers < 0:
        raise UsageError(f"--num-workers must not be negative, got {num_workers}")
    if num_workers == 0:
        yield _map_here
        return
    with _processes(num_workers) as pool:

        def run(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
            try:
                yield from _in_order(pool, function, items, num_workers)
            except BrokenProcessPool:
                raise JobError("a worker process was killed (out of memory?): use fewer --num-workers") from None

        yield run


def ordered_map(function: Callable[[A], B], items: Iterable[A], num_workers: int) -> Iterator[B]:
    """Results of ``function`` in the order of ``items``, by a :func:`worker_map` of its own."""
    with worker_map(num_workers) as run:
        yield from run(function, items)


def map_on_threads(function: Callable[[A], B], items: Iterable[A], at_once: int | None = None) -> Iterator[B]:
    """Results of ``function`` in the order of ``items``, computed by several threads that share torch's.

    For work that leaves Python's lock to others most of the time. At most two results a thread wait in memory.

    Args:
        function: called with each item.
        items: what to compute.
        at_once: threads, default as many as torch may use here; each lets torch use its share of those.
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, at_once or threads)
    if workers == 1:
        yield from map(function, items)
        return
    try:
        share = (threads // workers,)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=share) as pool:
            yield from _in_order(pool, function, items, workers)
    finally:
        torch.set_num_threads(threads)  # threads to come begin with what was set last


def _in_order(pool: Executor, function: Callable[[A], B], items: Iterable[A], num_workers: int) -> Iterator[B]:
    """Results in the order of ``items``; at most two a worker wait."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= 2 * num_workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _map_here(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    yield from map(function, items)


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes of this machine; on an error, Ctrl-C or SIGTERM they end at once.

    It alone cancels what waits: of futures that others cancelled, Python 3.11 tells by a traceback when workers end.
    """
    load_cv2()  # a missing package is told here, not by a worker that dies
    others = set(multiprocessing.active_children())
    pool = _Processes(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # they do not hear SIGTERM
        raise
    pool.shutdown(cancel_futures=True)


class _Processes(ProcessPoolExecutor):
    """Workers that leave Ctrl-C and SIGTERM to their parent, from their first moment: it ends them.

    Those signals reach every process of a terminal or of a batch job; a worker that is still importing would answer
    with a traceback. What is blocked when a process is started stays blocked in it.
    """

    def __init__(self, count: int) -> None:
        # spawned: a fork of a process with torch's threads may hang
        super().__init__(count, multiprocessing.get_context("spawn"), initializer=_start_worker)
        if os.name == "posix":
            resource_tracker.ensure_running()  # its start would lift the block

    def submit(self, function: Callable[..., B], /, *args: Any, **kwargs: Any) -> Future[B]:
        """See ``concurrent.futures``; the first calls start the workers."""
        with _hidden_script():
            if not hasattr(signal, "pthread_sigmask"):
                return super().submit(function, *args, **kwargs)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                return super().submit(function, *args, **kwargs)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _hidden_script() -> Iterator[None]:
    """Let workers start without the script that runs: what they compute comes from modules.

    They would run it again, all of it where it has no ``if __name__ == "__main__"``.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _start_worker() -> None:
    """One thread a worker, since they share the cores; torch reads the variables when a job imports it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it cannot be blocked
    _leave_with_parent()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    load_cv2().setNumThreads(1)


def _leave_with_parent() -> None:
    """End this process when the one that started it is killed: nobody is left to give it work."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
            for future in progress(_completed(futures, executor), len(futures), what, unit):
                finish(futures[future], future.result())
        except (BrokenExecutor, CancelledError) as error:
            raise JobError(
                f"{what or stage}: the workers died or were lost ({type(error).__name__}; out of memory?): what is "
                "finished is kept, run again, with fewer --jobs if memory is short"
            ) from None
        finally:
            for future in () if isinstance(executor, _Processes) else futures:
                future.cancel()
    return [arrays for arrays in results if arrays is not None]


def _completed(futures: Iterable[Future[B]], executor: Executor) -> Iterator[Future[B]]:
    """Futures as they end; raises :class:`JobError` when the cluster that computes them has lost all workers."""
    waiting = set(futures)
    last_seen = time.monotonic()
    while waiting:
        ended, waiting = wait(waiting, _ASK_EVERY_S, FIRST_COMPLETED)
        yield from ended
        if ended or _has_workers(executor):
            last_seen = time.monotonic()
        elif time.monotonic() - last_seen > _PATIENCE_S:
            raise JobError(
                f"the cluster has had no workers, or no scheduler, for {_PATIENCE_S:.0f} s: what is finished is kept, "
                "run again when they are back"
            )


def _has_workers(executor: Executor) -> bool:
    """Whether anybody computes: processes of this machine tell of their end themselves."""
    client = getattr(executor, "_client", None)  # of dask
    return client is None or (client.status == "running" and bool(client.scheduler_info()["workers"]))


def _run(function: Callable[[Job], Arrays], job: Job) -> Arrays:
    """One job in a worker of any kind: the workers share the cores, so each computes with one thread."""
    if multiprocessing.parent_process() is not None:
        import torch

        torch.set_num_threads(1)
    return function(job)


@contextmanager
def _dask(where: str) -> Iterator[Executor]:
    address = where.removeprefix(DASK)
    host, colon, port = address.rpartition(":")
    if not where.startswith(DASK) or not (host and colon and port.isdecimal()):
        raise UsageError(f"--executor {where}: expected dask://host:port, e.g. dask://127.0.0.1:8786")
    distributed = need("distributed", "dask")
    for name in list(logging.Logger.manager.loggerDict):  # distributed gives several a level of their own
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a lost scheduler is told by us, in one line
    try:
        client = distributed.Client(f"tcp://{address}", timeout=_CONNECT_S)
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
