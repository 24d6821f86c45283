"""The command line of 2020: published commands verbatim, and an answer to every option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from train.cli import main
from train.config import TrainConfig
from train.losses import LOSS_SETTINGS, LOSSES, Described
from train.recipes2020.flags import FLAGS, names_2020, parse_2020

UNIVERSAL = ["--arch=h8", "--ds=v4+lib", "--loss=tripletMargin++"]
PHOTO_TOURISM = ["--arch=h8E512", "--ds=lib+colo+notre", "--bs=9000", "--mpos=0.5", "--fewcams"]

# option -> a value for it that is taken, for the options whose meaning is kept
TAKEN = {
    "optimizer": "adamw", "ds": "v4", "model_arch": "h7", "loss": "tripletMargin", "batch_reduce": "average",
    "combine": "epoch", "epochs": "3", "tuples": "7000", "batch_size": "64", "cams_in_batch": "5", "seed": "4",
    "Npos": "2", "lr": "0.1", "marginpos": "0.5", "wd": "0.1", "no_fliprot": None, "closeok": None, "aug": "mild",
    "K": "full", "fewcams": None,
}  # fmt: skip
# option -> name of the setting that it changes
SETTING = {
    "model_arch": "arch", "batch_size": "bs", "Npos": "npos", "marginpos": "mpos", "no_fliprot": "fliprot", "K": "aug",
}  # fmt: skip


def _config(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*arguments, "--print-config"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_universal_descriptor(capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(UNIVERSAL, capsys)
    expected = {
        "arch": "h8", "loss": "tripletMargin++", "mpos": 1.0, "bs": 3072, "npos": 2, "patches_per_batch": 6144,
        "steps_per_epoch": 1627, "tuples_per_epoch": 4_998_144, "epochs": 20, "num_steps": 32_540,
        "optimizer": "adamw", "wd": 0.01, "beta2": 0.99, "eps": 1e-5, "schedule": "onecycle", "ema": 0.0,
        "dropout": 0.3, "fewcams": False, "seed": 0, "micro_batch": 0, "init": None,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert config["data"] == [{"token": "v4", "weight": 1.0}, {"token": "lib", "weight": 1.0}]
    network = config["network"]
    assert (network["parameters"], network["dim"], network["patch_size"]) == (4_775_200, 256, 32)
    assert "D0.3 C256-256k8" in network["layers"]
    rates = config["rates"]
    assert [rates[at]["lr"] for at in ("start", "quarter", "end")] == pytest.approx([0.12, 3.0, 3e-5])
    assert [rates[at]["momentum"] for at in ("start", "quarter", "end")] == pytest.approx([0.95, 0.85, 0.95])
    views, tuples = config["augmentation"]["views"], config["augmentation"]["tuples"]
    assert views["rotation_deg"] == 25.0
    assert views["zoom"] == [0.8, 1.4]
    assert views["shear_deg"] == [-25.0, 25.0]
    assert views["crop_area"] == [0.7, 1.0]
    assert tuples["symmetries"] == views["symmetries"] == 4
    assert tuples["rotation_deg"] == tuples["noise"] == tuples["gamma"] == 0.0


def test_the_photo_tourism_descriptor(capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(PHOTO_TOURISM, capsys)
    expected = {
        "arch": "h8E512", "loss": "tripletMargin", "mpos": 0.5, "bs": 9000, "npos": 2, "patches_per_batch": 18_000,
        "steps_per_epoch": 555, "tuples_per_epoch": 4_995_000, "num_steps": 11_100, "batch_reduce": "min",
        "closeok": False, "fewcams": True, "cams_in_batch": 0, "optimizer": "adamw", "wd": 0.01, "lr": 3.0,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert config["data"] == [{"token": token, "weight": 1.0} for token in ("lib", "colo", "notre")]
    assert (config["network"]["parameters"], config["network"]["dim"]) == (8_969_504, 512)


def test_short_and_long_names_mean_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--ds", "lib", "--arch", "h7", "--bs", "64", "--mpos", "0.5", "--ep", "3", "--tps", "7000", "--K", "full"]
    long = ["--ds", "lib", "--model_arch", "h7", "--batch_size", "64", "--marginpos", "0.5", "--epochs", "3"]
    long += ["--n_triplets", "7000", "--aug", "full"]
    assert _config(short, capsys) == _config(long, capsys)
    assert _config(["--ds", "lib"], capsys)["arch"] == "h8"
    assert _config(["--ds", "lib", "--eps", "1e-8"], capsys)["eps"] == 1e-8
    assert _config(["--ds", "lib", "--optimizer", "sgd2017"], capsys)["eps"] is None


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.dest)
def test_every_option_is_taken_or_answered(flag: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Every spelling; what is gone says what became of it and nothing is trained."""
    for name in flag.names:
        if flag.answer is not None:
            value = [] if flag.type is bool else ["0"]
            assert main(["--ds", "x", name, *value]) == 2
            error = capsys.readouterr().err
            assert f"{name} of the 2020 code {flag.answer}" in error
            if value:
                assert main(["--ds", "x", f"{name}=0"]) == 2
                capsys.readouterr()
        elif flag.dest == "resume":
            continue
        else:
            value = TAKEN[flag.dest]
            base = ["--ds", "lib"] if flag.dest != "ds" else []
            base += ["--fewcams"] if flag.dest == "cams_in_batch" else []
            config = _config([*base, name, *([value] if value else [])], capsys)
            shown = config[SETTING.get(flag.dest, flag.dest)]
            expected = flag.dest != "no_fliprot" if value is None else type(shown)(value)
            assert shown == expected


@pytest.mark.parametrize(
    ("flags", "beside"),
    [(["--batch_reduce", "average"], "tripletMargin++"), (["--batch_reduce=min"], "hybrid"),
     (["--closeok"], "tripletMargin++"), (["--closeok"], "hybrid,sos"), (["--mpos", "1"], "softmax"),
     (["--marginpos=0.5"], "softMargin,gor*2"), (["--batch_reduce", "min"], "statistical")],
)  # fmt: skip
def test_flags_that_the_loss_does_not_obey_are_refused(
    flags: list[str], beside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = flags[0].split("=")[0].replace("--marginpos", "--mpos")
    reason = f"{name} has no effect with --loss {beside}: leave it out"
    _is_answered(["--ds", "lib", "--loss", beside, *flags, "--print-config"], reason, capsys)
    # one of several terms obeys it
    _is_answered(["--ds", "lib", "--loss", f"{beside},tripletMargin", *flags, "--print-config"], None, capsys)


def test_settings_that_say_what_they_change_change_the_loss() -> None:
    """What a loss is said to obey, and no more, changes its value; two tuples are near-duplicates."""
    raw = torch.randn(12, 16, generator=torch.Generator().manual_seed(0)).double()
    raw[2] = raw[1] + 1e-4 * raw[3]
    unit, tuples = F.normalize(raw.float(), dim=1), torch.arange(12) // 2
    other = {"mpos": 0.7, "batch_reduce": "average", "closeok": True}
    assert set(other) == set(LOSS_SETTINGS)
    for name, entry in LOSSES.items():
        alone = f"{name},softmax" if entry.regulariser else name
        taught = {"teacher": "h8E512"} if name == "distill" else {}
        plain, *changed = (
            TrainConfig("lib", loss=alone, **settings).build_criterion()(
                Described(unit, raw.norm(dim=1).float(), tuples, tuples, targets=unit.flip(0))
            )[2][name].item()
            for settings in (taught, *({key: value, **taught} for key, value in other.items()))
        )  # fmt: skip
        assert [key for key, value in zip(other, changed, strict=True) if value != plain] == [*entry.obeys], name


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(["--batch_reduce", "random_global"], "but it ended in a failed assertion (there are: min, average, random)"),
     (["--batch_reduce=L2Net"], "--batch_reduce L2Net of the 2020 code is left out"),
     (["--batch_reduce", "mean"], "unknown reduction of negatives 'mean'"), (["--batch_reduce", "random"], None),
     (["--gor", "True"], "--gor of the 2017 code is a term of the loss: --loss tripletMargin,gor"),
     (["--decor=True"], "--decor of the 2017 code is left out: the correlation penalty"),
     (["--loss", "tripletMargin,gor*0.5"], None)],
)  # fmt: skip
def test_what_earlier_code_offered_is_taken_or_answered_with_the_reason(
    flags: list[str], reason: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    _is_answered(["--ds", "lib", *flags, "--print-config"], reason, capsys)


def test_settings_that_others_overrule_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--ds", "lib", "--eps", "1e-8", "--print-config"]
    _is_answered([*line, "--optimizer", "sgd2017"], "--eps has no effect with --optimizer sgd2017", capsys)
    _is_answered(["--ds", "x", "--epochs", "2", "--steps", "9"], "--epochs has no effect with --steps 9", capsys)
    _is_answered([*line, "--optimizer", "adamw"], None, capsys)


def test_the_optimizer_that_2020_named_is_answered_with_the_one_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    _is_answered(["--ds", "lib", "--optimizer=sgd"], "it ran AdamW", capsys)


def test_resume_with_a_file_answers_with_init(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for others in ([], ["--arch", "h8", "--ds", "lib"]):
        assert main([*others, "--resume", str(tiny_checkpoint)]) == 2
        assert f"--init {tiny_checkpoint}" in capsys.readouterr().err


def test_the_help_is_of_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    for command, part in (("run", "tripletMargin++"), ("pca", "--whiten"), ("build photos", "goes on")):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert part in shown
        assert "--filter_sets" not in shown


@pytest.mark.parametrize("name", ["univ", "ptv2", "misc", "oldgen"])
def test_names_of_old_models(cases: dict[str, dict[str, Any]], name: str) -> None:
    case = cases[f"naming.{name}"]
    expected = case["expected"]
    assert names_2020(case["inputs"]["argv"]) == (expected["data_name"], expected["save_name"])


def test_defaults_of_the_2020_code(cases: dict[str, dict[str, Any]]) -> None:
    expected = cases["naming.defaults"]["expected"]
    assert parse_2020([]) == expected["args"]
    assert names_2020([]) == (expected["data_name"], expected["save_name"])


def test_the_list_of_options_is_complete(cases: dict[str, dict[str, Any]]) -> None:
    kinds = {str: "str", int: "int", float: "float", bool: "flag"}
    found = [[list(flag.names), flag.dest, kinds[flag.type], flag.default] for flag in FLAGS]
    assert found == cases["naming.flags"]["expected"]


# --- what else the 2020 code knew by name: networks, ways of building, augmentations, losses, scripts

_PCA = [f"{stem}pca{n}" for stem, sizes in (
    ("h8", (256, 128, 96, 64, 32)), ("h7", (128, 96, 64, 32)), ("h8E512", (512, 256, 128, 96, 64, 32)),
) for n in sizes]  # fmt: skip
ARCH_TOKENS = {
    # token -> None where it is taken, else a part of the reason
    **dict.fromkeys([
        "h1", "h3", "h7", "h7d01", "h7nodrop", "h7x2", "h7p48", "h7Le", "h7E256", "h8", "h8Ins", "h8c", "h8p48",
        "h8p48x", "h8p64", "h8avg", "h8max", "h8x2", "h8x2c", "h8Econv3x3s2p1", "h8Econv3x3s2s2c22", "h8Econv3xnopad",
        "h8blocks", "h8blocksc3x3", "h8Eavg11", "h8Emax11", "h8Ecto128", "h8E512", "h9", "h9cl", "h9x", "h9t", "h9tt",
        "h8pre", "h8E512pre", "h8x2pre", "l2net",
    ]),
    **dict.fromkeys(_PCA, "output_dim="),
    **dict.fromkeys(["h8-3", "h8_3", "h8E512-4"], "only one input channel"),
    "h8sa": "self-attention", "h8mb": "max-blur", "HReM": "space-to-depth", "HReMIn": "space-to-depth",
    "h8SBMIn": "space-to-depth", "HR": "last convolution", "HR2": "last convolution", "hPS": "biases",
    "sosnet": "kornia.feature.SOSNet", "h7sep": "depth", "h8sep": "depth", "Rc2": "residual", "Rc3": "residual",
    "Rc3x": "residual", **dict.fromkeys(["De32", "De16", "De16s", "De16xs"], "downloads ImageNet weights"),
}  # fmt: skip
LOSS_NAMES = {
    **dict.fromkeys([
        "tripletMargin", "tripletMarginHuberInternal", "tripletMarginHuberExternal", "tripletMarginHuberDouble",
        "tripletMarginRobust", "softmax", "contrastive", "softMargin", "tripletMargin++",
    ]),
    "face": "left out", "theirTripletMargin": "left out", "decor": "correlation penalty was off by default",
    "CorrelationPenaltyLoss": "gor spreads", "Margin": "unknown loss", "anything++": "unknown loss",
    "": "not of the form",
}  # fmt: skip


def _is_answered(arguments: list[str], reason: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Taken where there is no reason; else refused in one line that tells it."""
    assert main(arguments) == (2 if reason else 0)
    error = capsys.readouterr().err
    assert (reason or "") in error
    assert len(error.strip().splitlines()) == bool(reason)


@pytest.mark.parametrize("token", ARCH_TOKENS)
def test_every_network_is_taken_or_refused(token: str, capsys: pytest.CaptureFixture[str]) -> None:
    _is_answered(["--ds", "lib", "--arch", token, "--print-config"], ARCH_TOKENS[token], capsys)


def test_no_network_is_forgotten(cases: dict[str, dict[str, Any]]) -> None:
    assert set(cases["architectures.table"]["expected"]) <= set(ARCH_TOKENS)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_loss_works_or_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _is_answered(["--ds", "lib", "--loss", name, "--print-config"], LOSS_NAMES[name], capsys)
    if LOSS_NAMES[name] is None:  # it learns: a step down its gradient makes it smaller
        criterion = TrainConfig("lib", loss=name).build_criterion()
        raw = torch.randn(12, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        tuples = torch.arange(12) // 2

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            return criterion(Described(F.normalize(rows, dim=1), rows.norm(dim=1), tuples, tuples))[0]

        before = loss_of(raw)
        before.backward()
        assert raw.grad is not None
        assert loss_of(raw - 0.05 * raw.grad / raw.grad.norm()) < before


@pytest.mark.parametrize(
    ("value", "reason"),
    [("full", None), ("noblur", None), ("resize32", "is the default"), ("resize48", "--arch h8p48"),
     ("resize64", "--arch h8p64"), ("resize_crop", "smaller mr_size")],
)  # fmt: skip
def test_every_augmentation_works_or_is_refused(
    value: str, reason: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    _is_answered(["--ds", "lib", "--K", value, "--print-config"], reason, capsys)


@pytest.mark.parametrize(
    ("value", "reason"),
    [("new", "build amos"), ("meanImg", "at random"), ("medianImg", "at random"), ("oneRes", "at random"),
     ("sumRes", "at random"), ("medianRes", "at random"), ("sift", "--detector sift"), ("hessbaum", "affine detector"),
     ("oneImg", "never existed"), ("sumImg", "never existed"), ("else", "older ways")],
)  # fmt: skip
def test_every_way_of_building_webcam_sets_is_answered(
    value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _is_answered(["--ds", "lib", "--patch_gen", value], reason, capsys)


@pytest.mark.parametrize(
    ("name", "successor"),
    [("ftrain.py", "python -m train"), ("test.py", "brown --task amos --data STORE"),
     ("HPatches_extract_HardNet.py", "--write-csv"),
     ("hp_eval.sh", "eval hpatches"), ("Notebooks/add_pca.ipynb", "train pca"), ("utils_.py", "build colmap"),
     ("filter_sets", "nothing wrote the statistics"), ("HPatchesDatasetCreator.py", "build hpatches"),
     ("HardNetMultipleDatasets.py", "ftrain.py")],
)  # fmt: skip
def test_every_script_has_a_successor(name: str, successor: str, capsys: pytest.CaptureFixture[str]) -> None:
    _is_answered([name, "--id", "3"], successor, capsys)


def test_the_trainer_of_2020_is_answered_with_the_place_of_its_model(
    cases: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    case = cases["naming.misc"]
    _is_answered(["ftrain.py", *case["inputs"]["argv"]], f"lay in Models/{case['expected']['save_name']}", capsys)
    _is_answered(["ftrain.py", "--model_dir", "M", "--arch=h8"], "lay in M/id:0_arch:h8_", capsys)
    _is_answered(["ftrain.py", "--nonsense"], "the 2020 code had no option --nonsense", capsys)
    _is_answered(["ftrain.py", "--bs", "x"], "invalid int value: 'x'", capsys)
    _is_answered(["ftrain.py", "--b=3"], "ambiguous option", capsys)


@pytest.mark.parametrize(
    "command",
    [["--ds", "lib"], ["pca", "x.pt", "--ds", "lib", "--out", "y.pt"], ["info", "store"],
     ["build", "photos", "folder", "--out", "store"]],
)  # fmt: skip
def test_a_negative_seed_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--seed", "-1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("a seed is a whole number of 0 to 2^31 - 1, got '-1'")


def test_the_folder_of_a_run_is_answered_with_its_checkpoint(
    tiny_checkpoint: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(tiny_checkpoint.parent), ["--out", str(tmp_path / "x.ckpt")]
    for line in (["pca", folder, "--ds", str(tiny_store), *out], ["average", folder, folder, *out]):
        _is_answered(line, f"{folder} is the folder of a run: its", capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [["--ds", "lib", "--threads", "-1"], ["--ds", "lib", "--threads", "x"], ["bench", "--threads", "0"],
     ["bench", "--steps", "0"], ["pca", "x.pt", "--ds", "lib", "--out", "y.pt", "--patches", "-5"]],
)  # fmt: skip
def test_what_counts_is_a_positive_number(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    end = f"argument {command[-2]}: a whole number of 1 and more is needed, got {command[-1]!r}"
    assert capsys.readouterr().err.splitlines()[-1].endswith(end)
