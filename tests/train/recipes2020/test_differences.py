"""Every bug and surprise of the 2020 code: what it became here is told where a user asks for it."""

from __future__ import annotations

import pytest

from train.cli import main

RUN, AMOS, COLMAP, HPATCHES, PCA = ("run", "build amos", "build colmap", "build hpatches", "pca")
# number in the list of 37 -> a help text and what it says
TOLD = {
    1: (RUN, "whatever --optimizer and --wd said"),
    2: (RUN, "FPR95 is at 95 % recall"),
    3: (RUN, "on labels that are never trained on"),
    4: (PCA, "in evaluation mode"),
    5: (RUN, "--no_fliprot works"),
    6: (RUN, "options that had no effect are refused"),
    7: (RUN, "run folder (default: runs/<date>-<arch>)"),
    8: (RUN, "saved after their validation, the best one too"),
    9: (RUN, "and no code"),
    10: (AMOS, "no second call is needed to train"),
    11: (AMOS, "angles repeat with --seed"),
    12: (RUN, "--ds takes any mix"),
    13: (RUN, "--loss refuses names that it does not know"),
    14: (RUN, "--loss refuses names that it does not know"),
    16: (RUN, "turned by the augmentation, not their frames"),
    17: (AMOS, "turned and cut in one resampling"),
    18: (RUN, "sheared along x alone"),
    19: (RUN, "neither transpose nor mirror tuples"),
    20: (RUN, "labels with one patch are left out"),
    21: (RUN, "random labels of its last camera"),
    22: (RUN, "tuples of --Npos patches are equally long"),
    23: (RUN, "sets entry (i, j) against the positive distance of j"),
    24: (RUN, "--combine inbatch counts the steps that it takes"),
    25: (HPATCHES, "wrote tuples that its trainer refused"),
    30: (PCA, "passes gradients"),
    31: (COLMAP, "'fixed' = the axis-aligned 64-pixel windows of 2020"),
    35: (RUN, "sampling repeats with --seed"),
    37: (RUN, "read from the disk as they are needed"),
}
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


def _help(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_none_is_forgotten() -> None:
    assert TOLD.keys() | ANSWERED.keys() | NOTHING_TO_TELL.keys() == set(range(1, 38))


@pytest.mark.parametrize("number", TOLD)
def test_the_help_tells(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    command, part = TOLD[number]
    assert part in _help(command, capsys)


@pytest.mark.parametrize("number", ANSWERED)
def test_the_command_answers(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, part = ANSWERED[number]
    assert main(arguments) == 2
    assert part in capsys.readouterr().err
