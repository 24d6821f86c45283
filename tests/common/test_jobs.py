from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cache import Cache
from common.jobs import JobError, compute_all, map_on_threads, open_executor, worker_map
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


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_give_results_in_order_and_compute_with_one_thread_each(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = list(map_on_threads(lambda number: (number, torch.get_num_threads()), range(20)))
        assert found == [(number, 1) for number in range(20)]
        assert torch.get_num_threads() == threads
        with ThreadPoolExecutor(1) as other:  # a thread that begins afterwards
            assert other.submit(torch.get_num_threads).result() == threads
        with pytest.raises(DataError, match="-1 is negative"):
            list(map_on_threads(square, [2, -1, 3]))
    finally:
        torch.set_num_threads(before)


def test_a_script_without_a_guard_is_not_run_by_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import math\nfrom common.jobs import worker_map\nprint('begin')\n"
        "with worker_map(1) as run:\n    print(list(run(math.sqrt, [4.0, 9.0])))\n"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=False, timeout=300)
    assert (done.stdout, done.returncode) == ("begin\n[2.0, 3.0]\n", 0), done.stderr


def threads_of_torch(_: int) -> int:
    return torch.get_num_threads()


def test_torch_has_one_thread_in_a_worker_whatever_the_user_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "3")
    with worker_map(1) as run:
        assert list(run(threads_of_torch, [0])) == [1]


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
    assert logging.getLogger("distributed.client").getEffectiveLevel() == logging.CRITICAL


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


class NobodyLeft:
    """A client of a cluster that lost its workers."""

    def __init__(self, status: str) -> None:
        self.status = status

    def scheduler_info(self) -> dict[str, dict[str, str]]:
        return {"workers": {}}


@pytest.mark.parametrize("status", ["running", "closed"])
def test_a_cluster_without_workers_is_given_up(status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.jobs._ASK_EVERY_S", 0.02)
    monkeypatch.setattr("common.jobs._PATIENCE_S", 0.1)
    free = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(free.wait)  # nothing else is ever computed
        executor._client = NobodyLeft(status)  # type: ignore[attr-defined]
        with pytest.raises(JobError, match="no workers, or no scheduler"):
            compute_all(Cache(tmp_path), "squares", work(1, 2), square, executor)
        free.set()


PARENT = """
import signal, sys, time
from pathlib import Path
from common.cache import Cache
from common.jobs import compute_all, open_executor
from kornia_hardnet8.command import run_command
from tests.common.test_jobs import sleep_and_tell
signal.signal(signal.SIGINT, signal.default_int_handler)  # what started the tests may have it ignored
def command():
    with open_executor(jobs=2) as executor:
        compute_all(Cache(Path(sys.argv[1])), "sleep", [({"n": n}, (sys.argv[1], n)) for n in range(2)],
                    sleep_and_tell, executor)
sys.exit(run_command(command))
"""


def sleep_and_tell(job: tuple[str, int]) -> dict[str, np.ndarray]:
    Path(job[0], f"pid{job[1]}").write_text(str(os.getpid()))
    time.sleep(120)
    return square(job[1])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes of Linux")
@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 143, "error: stopped by SIGTERM\n"),
        (signal.SIGINT, 130, "error: interrupted\n"),
        (signal.SIGKILL, -9, "anything"),
    ],
)
def test_workers_leave_with_their_parent(
    number: signal.Signals, code: int, line: str, to_group: bool, tmp_path: Path
) -> None:
    if to_group and number == signal.SIGKILL:
        pytest.skip("nobody is left to look at")
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], cwd=root, stderr=subprocess.PIPE, text=True, process_group=0
    )
    pids: list[int] = []
    deadline = time.monotonic() + 200
    while len(pids) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        pids = [int(text) for path in tmp_path.glob("pid*") if (text := path.read_text())]
    assert len(pids) == 2
    (os.killpg if to_group else os.kill)(parent.pid, number)
    _, errors = parent.communicate(timeout=100)
    assert parent.returncode == code
    if number != signal.SIGKILL:  # after which Python's own tracker of semaphores speaks
        assert errors == line
    deadline = time.monotonic() + 30
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, pids))
