"""Both tasks on several processes: a cluster that loses a worker, and two runs that share a cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from common.cache import Cache
from common.jobs import open_executor
from eval.core.estimators import EstimatorSettings
from eval.core.results import read_results
from eval.features import load
from eval.features.detect import DogSettings
from eval.imw.multiview import MultiviewSettings
from eval.imw.run import ImwSettings, run_method
from eval.imw.scene import open_scene
from eval.imw.stereo import StereoSettings

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_both_tasks_on_a_dask_cluster_of_which_a_worker_is_killed(
    corner_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one killed after the first finished job: the same numbers as in one process."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("eval.core.pairs.BLOCK", 1)
    settings = ImwSettings(
        StereoSettings(detector=DogSettings(num=400), estimator=EstimatorSettings(threshold_px=0.5, max_iters=20_000)),
        MultiviewSettings(),
    )
    scene = open_scene(corner_scene)
    alone = run_method([scene], load("rootsift"), settings, Cache(tmp_path / "alone"))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        first = min(client.run(os.getpid).values())
        cache = Cache(tmp_path / "cluster")
        killed = threading.Event()

        def kill_after_the_first_result() -> None:
            while not list(cache.root.glob("geometry/*.h5")):
                time.sleep(0.005)
            os.kill(first, signal.SIGKILL)
            killed.set()

        threading.Thread(target=kill_after_the_first_result, daemon=True).start()
        with open_executor(cluster.scheduler_address.replace("tcp://", "dask://")) as executor:
            found = run_method([scene], load("rootsift"), settings, cache, executor)
        assert killed.is_set()
        assert first not in client.run(os.getpid).values()
    for one, two in zip(alone.stereo[0].pairs, found.stereo[0].pairs, strict=True):
        assert one.error_deg == two.error_deg
        np.testing.assert_array_equal(one.inliers, two.inliers)
    assert len(found.multiview[0].bags) == 5
    for bag, other in zip(alone.multiview[0].bags, found.multiview[0].bags, strict=True):
        assert bag.status == other.status
        np.testing.assert_array_equal(bag.errors, other.errors)


@pytest.mark.slow
def test_two_runs_on_one_cache_and_one_that_is_killed_and_goes_on(corner_scene: Path, tmp_path: Path) -> None:
    """Three processes start on one empty cache; one is killed; the others and a later one agree."""
    base = [sys.executable, "-m", "eval", "imw", "--data", corner_scene, "--desc", "rootsift", "--keypoints", "400"]
    base += ["--max-iters", "20000", "--viz", "0", "--cache", tmp_path / "cache"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[str]:
        line = [*base, "--out", tmp_path / name]
        return subprocess.Popen(
            line, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    killed = start("killed")
    while not list((tmp_path / "cache").glob("matches/*.h5")) and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    both = [start("one"), start("two")]
    for process in both:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    one, two = (read_results(tmp_path / name / "results.json")[0] for name in ("one", "two"))
    assert one["scores"] == two["scores"]
    assert [row.get("error_deg") for row in one["per_pair"]] == [row.get("error_deg") for row in two["per_pair"]]
    assert one["scores"]["multiview/mAA@10"]["n"] == 5
    assert not list((tmp_path / "cache").rglob("*.tmp"))
