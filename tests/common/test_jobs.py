from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from common.cache import Cache
from common.jobs import JobError, compute_all, open_executor
from common.machine import available_cores
from kornia_hardnet8.errors import DataError, UsageError


def square(number: int) -> dict[str, np.ndarray]:
    if number < 0:
        raise DataError(f"{number} is negative")
    return {"square": np.array(number * number)}


def square_or_die(number: int) -> dict[str, np.ndarray]:
    if number == 13:
        time.sleep(1.0)  # until the others are done
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def work(*numbers: int) -> list[tuple[Mapping[str, int], int]]:
    return [({"number": number}, number) for number in numbers]


def values(found: list[dict[str, np.ndarray]]) -> list[int]:
    return [int(arrays["square"]) for arrays in found]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order_from_any_executor(threads: int, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("squares", {"number": 3}, {"square": np.array(-1)})  # found, not computed
    numbers = [5, 3, 1, 4]
    if threads == 0:
        found = compute_all(cache, "squares", work(*numbers), square)
    else:
        with ThreadPoolExecutor(threads) as executor:
            found = compute_all(cache, "squares", work(*numbers), square, executor)
    assert values(found) == [25, -1, 1, 16]
    assert len(list((tmp_path / "squares").iterdir())) == 4
    assert compute_all(cache, "squares", [], square) == []


def test_what_was_finished_before_an_error_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(DataError, match="-1 is negative"):
        compute_all(cache, "squares", work(2, 3, -1, 4), square)
    assert cache.get("squares", {"number": 3}) is not None
    assert cache.get("squares", {"number": 4}) is None


def test_a_worker_that_dies_is_one_line_and_the_finished_jobs_are_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with (
        ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor,
        pytest.raises(JobError, match="squares: the workers died"),
    ):
        compute_all(cache, "squares", work(13, 2, 3), square_or_die, executor)
    assert values(compute_all(cache, "squares", work(2, 3), lambda _: pytest.fail("computed again"))) == [4, 9]


def test_results_that_may_not_be_kept_are_computed_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for _ in range(2):
        found = compute_all(cache, "squares", work(1, 2), square, keep=lambda arrays: arrays["square"] > 1)
        assert values(found) == [1, 4]
    assert len(list((tmp_path / "squares").iterdir())) == 1


def test_where_jobs_run() -> None:
    with open_executor(jobs=1) as executor:
        assert executor is None
    with open_executor(jobs=2) as executor:
        assert isinstance(executor, ProcessPoolExecutor)
        assert not multiprocessing.active_children()  # they start with the first job
    assert available_cores() >= 1
    with pytest.raises(UsageError, match="--jobs must be at least 1, got 0"), open_executor(jobs=0):
        pass
    for where in ("dask", "dask://", "dask://host", "http://host:80", "dask://host:port"):
        with pytest.raises(UsageError, match="expected dask://host:port"), open_executor(where):
            pass


def test_a_scheduler_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("common.jobs._CONNECT_S", 1)
    with (
        pytest.raises(JobError, match="no dask scheduler answers there") as caught,
        open_executor("dask://127.0.0.1:1"),
    ):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_processes_of_this_machine_do_the_work_and_end_with_an_error(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with open_executor(jobs=2) as executor:
        assert values(compute_all(cache, "squares", work(2, 3, 4), square, executor)) == [4, 9, 16]
    with pytest.raises(DataError), open_executor(jobs=2) as executor:
        compute_all(cache, "squares", work(5, -2, 6), square, executor)
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
