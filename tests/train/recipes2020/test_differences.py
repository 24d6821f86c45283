"""Every bug and surprise of the 2020 code: docs/training-2020.md or a help text tells what it became here."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "training-2020.md"
# number in the list of 37 -> what the page says of it
TOLD = {
    1: "whatever --optimizer and --wd said",
    2: "FPR95 is at 95 % recall",
    3: "on labels that are never trained on",
    4: "in evaluation mode",
    5: "--no_fliprot works",
    6: "options that had no effect are refused",
    8: "saved after their validation, the best one too",
    9: "and no code",
    10: "no second call is needed to train",
    11: "angles repeat with --seed",
    12: "--ds takes any mix",
    13: "--loss refuses names that it does not know",
    14: "--loss refuses names that it does not know",
    16: "turned by the augmentation, not their frames",
    17: "turned and cut in one resampling",
    18: "sheared along x alone",
    20: "Labels with one patch are left out",
    21: "random labels of its last camera",
    22: "Tuples of --Npos patches are equally long",
    23: "sets entry (i, j) against the positive distance of j",
    24: "--combine inbatch counts the steps that it takes",
    25: "wrote tuples that its trainer refused",
    30: "passes gradients",
    31: "the axis-aligned 64-pixel windows of 2020",
    35: "sampling repeats with --seed",
    37: "read from the disk as they are needed",
}
# number -> what the help of the trainer says of it
IN_THE_HELP = {7: "run folder (default: runs/<date>-<arch>)", 19: "neither transpose nor mirror tuples"}
# number -> a command line, and the answer to it
ANSWERED = {
    6: (["--ds", "x", "--shear", "25"], "--shear of the 2020 code had no effect"),
    15: (["--ds", "x", "--loss", "theirTripletMargin"], "never part of the repository"),
    26: (["--ds", "x", "--patch_gen", "oneImg"], "never existed"),
    27: (["--ds", "x", "--scaleit"], "--scaleit of the 2020 code had no effect"),
    28: (["--ds", "x", "--arch", "HR2"], "never used its last convolution"),
    29: (["--ds", "x", "--arch", "De16"], "downloads ImageNet weights"),
}
# number -> why there is nothing to tell
NOTHING_TO_TELL = {
    32: "resizing of HPatches strips, which belongs to the evaluation",
    33: "an attribute that was never read",
    34: "the schedule is the same, one_cycle of the vectors",
    36: "a call that later versions of Python refuse",
}


def test_none_is_forgotten() -> None:
    assert TOLD.keys() | IN_THE_HELP.keys() | ANSWERED.keys() | NOTHING_TO_TELL.keys() == set(range(1, 38))


@pytest.mark.parametrize("number", TOLD)
def test_the_page_tells(number: int) -> None:
    assert TOLD[number] in " ".join(PAGE.read_text(encoding="utf-8").replace("`", "").split())


def test_the_help_tells(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert [part for part in (*IN_THE_HELP.values(), "docs/training-2020.md") if part not in shown] == []


@pytest.mark.parametrize("number", ANSWERED)
def test_the_command_answers(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, part = ANSWERED[number]
    assert main(arguments) == 2
    assert part in capsys.readouterr().err
