"""``python -m eval imw-validate``: check a submission before it is handed in."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from eval.imw.submission.archive import MAX_TOTAL_BYTES
from eval.imw.submission.validate import validate, verdict


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("submission", type=Path, metavar="FILE.zip", help="the zip, or its unpacked folder")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="DATASET/SCENE folders with images, or full scenes"
    )
    parser.add_argument(
        "--official", action="store_true", help="check the full list of test scenes, not those that --data holds"
    )
    parser.add_argument(
        "--max-size", type=float, default=MAX_TOTAL_BYTES / (1 << 30), metavar="GIB", help="of the unpacked zip"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print every finding; 1 when there is an error."""
    findings = validate(args.submission, args.data, args.official, int(args.max_size * (1 << 30)))
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(finding)
        errors, total = len(findings.errors), len(findings.items)
        print(f"{args.submission}: {errors} errors, {total - errors} warnings: {verdict(findings)}")
    return 1 if findings.errors else 0
