"""The Brown cases of ``vectors_hpatches.json`` and the ``fpr95`` cases of ``vectors_training.json``."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.brown import read_first_column, read_pairs
from common.metrics import average_precision, average_precision_merged, fpr95, fpr_at_recall, precision_recall
from eval.brown.amos import match_views
from eval.brown.data import read_brown
from eval.brown.revisited import distance_ratio_ap, revisited_aps
from tests.official import revisited_map

VECTORS = Path(__file__).parent.parent / "vectors"
BROWN = {
    c["name"]: c
    for c in json.loads((VECTORS / "vectors_hpatches.json").read_text())["cases"]
    if c["name"].startswith("brown_")
}
TRAINING = {
    c["name"]: c
    for c in json.loads((VECTORS / "vectors_training.json").read_text())["cases"]
    if c["name"].startswith("fpr95.")
}
# Values of single cases that are not reproduced on purpose.
NOT_REPRODUCED = {
    "original_torch_backend_on_cpu": "the original's float32 backend adds 1e-6 to differences, and mixes two units "
    "for hamming; its numpy backend is reproduced",
}


def unpack(value):
    if isinstance(value, dict):
        return np.frombuffer(base64.b64decode(value["b64"]), value["dtype"]).reshape(value["shape"])
    return np.array(value)


def check_parse(case, folder):
    name, inputs, expected = case["name"], case["inputs"], case["expected"]
    if name == "brown_parse_info":
        (folder / "info.txt").write_text(inputs["info.txt"])
        assert read_first_column(folder / "info.txt").tolist() == expected["labels"]
    elif name == "brown_parse_interest":
        (folder / "interest.txt").write_text(inputs["interest.txt"])
        assert read_first_column(folder / "interest.txt").tolist() == expected["image_ids"]
    elif name == "brown_parse_matches":
        (folder / "m50.txt").write_text(inputs["m50"])
        labels = np.array(BROWN["brown_parse_info"]["expected"]["labels"])
        assert read_pairs(folder / "m50.txt", labels).tolist() == expected["matches"]
    else:
        tiles = np.arange(256).reshape(16, 16)
        for number, values in enumerate((tiles, 255 - tiles)):
            mosaic = np.kron(values, np.ones((64, 64))).astype(np.uint8)
            Image.fromarray(mosaic).save(folder / f"patches000{number}.bmp")
        (folder / "info.txt").write_text("0 0 \n" * inputs["n"])
        patches = read_brown(folder).patches
        assert list(patches.shape) == expected["shape"]
        for index, value in expected["first_pixel_of_patch"].items():
            assert patches[int(index), 0, 0] == value


def check_revisited(case):
    inputs, expected, tol = case["inputs"], case["expected"], case["tolerance"]
    if "pos_dist" in inputs:
        near, far = np.array(inputs["pos_dist"]), np.array(inputs["neg_dist"])
        assert (near <= far).astype(int).tolist() == expected["correct"]
        assert distance_ratio_ap(near, far) == pytest.approx(expected["ap"], abs=tol)
        return
    descs = unpack(inputs["bits"]) if "bits" in inputs else unpack(inputs["descriptors_int8"]) * inputs["scale"]
    labels, ids = unpack(inputs["labels"]).astype(np.int64), unpack(inputs["image_ids"]).astype(np.int64)
    distance = inputs["distance"]
    got = revisited_map(descs, labels, ids, distance, "v0.3.0")
    assert got == pytest.approx(expected["original_numpy_backend"], abs=tol)
    fixed = revisited_aps(descs, labels, ids, distance)
    want = expected["proposed_fix_hardest_negative_for_all"]
    assert np.mean(list(fixed.values())) == pytest.approx(want, abs=tol)
    checked = {"original_numpy_backend", "proposed_fix_hardest_negative_for_all", "proposed_fix_per_image_ap"}
    assert set(expected) - checked <= set(NOT_REPRODUCED)
    if "proposed_fix_per_image_ap" in expected:
        assert list(fixed.values()) == pytest.approx(expected["proposed_fix_per_image_ap"], abs=tol)


@pytest.mark.parametrize("name", BROWN)
def test_brown_vector(name, tmp_path):
    if name.startswith("brown_parse"):
        check_parse(BROWN[name], tmp_path)
    else:
        assert name.startswith("brown_revisited"), f"the case {name} is not reproduced"
        check_revisited(BROWN[name])


@pytest.mark.parametrize("name", TRAINING)
def test_training_vector(name):
    case = TRAINING[name]
    inputs, expected, tol = case["inputs"], case["expected"], case["tolerance"]["abs"]
    if name == "fpr95.tiny":
        for recall in (0.99, 0.95, 0.8):
            got = fpr_at_recall(inputs["distances"], inputs["labels"], recall)
            assert got == pytest.approx(expected[f"recall_{recall}"], abs=tol)
    elif name == "fpr95.hpatches_pr":
        arguments = inputs["scores"], inputs["labels"], inputs["numpos"]
        precision, recall = precision_recall(*arguments)
        np.testing.assert_allclose(precision, expected["precision"], atol=tol)
        np.testing.assert_allclose(recall, expected["recall"], atol=tol)
        assert average_precision(*arguments) == pytest.approx(expected["ap"], abs=tol)
    elif name == "fpr95.amos_match_pair":
        query, target = (torch.tensor(inputs[k]) for k in ("query", "target"))
        pair = match_views(query, target, inputs["centers"], inputs["centers"])
        assert pair.right.tolist() == expected["right"]
        assert pair.kept.tolist() == expected["kept"]
        assert pair.ap == pytest.approx(expected["ap"], abs=tol)
    else:
        source = TRAINING["fpr95.as_implemented"]["inputs"]
        distances, labels = np.array(source["distances"]), np.array(source["labels"])
        if name == "fpr95.average_precision":
            tiny = TRAINING["fpr95.tiny"]["inputs"]
            for d, y, want in ((distances, labels, expected["value"]), (*tiny_arrays(tiny), expected["tiny"])):
                assert average_precision_merged(-d, y) == pytest.approx(want, abs=tol)
        else:
            recall = {"fpr95.as_implemented": 0.99, "fpr95.correct": 0.95}[name]
            assert fpr_at_recall(distances, labels, recall) == pytest.approx(expected["value"], abs=tol)
            if recall == 0.95:
                assert fpr95(distances, labels) == pytest.approx(expected["value"], abs=tol)


def tiny_arrays(inputs):
    return np.array(inputs["distances"]), np.array(inputs["labels"])
