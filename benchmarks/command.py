"""``python -m eval bench WHAT``: how fast it is, against the plain way, and what reduced precision changes."""

from __future__ import annotations

import argparse

from benchmarks import agreement, descriptors, hpatches, imw, reconstruct
from common.shell import add_message_flags, output_file
from eval.core.results import environment, strict
from kornia_hardnet8.files import write_json

BENCHES = {
    "descriptors": (descriptors, "patches and whole images described a second, by kornia, ours and others"),
    "imw": (imw, "the stereo task on the built-in scene, against plain loops"),
    "hpatches": (hpatches, "the patch tasks on a synthetic full-size HPatches, against plain loops"),
    "reconstruct": (reconstruct, "a folder of photographs to a model, against COLMAP's own features and matches"),
    "agreement": (agreement, "whether reduced precision finds the neighbours that fp32 finds, on your own patches"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--imw", action="store_true", help="WHAT is imw, as it comes")
    parser.add_argument("--hpatches", action="store_true", help="WHAT is hpatches, as it comes")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=output_file, metavar="FILE", help="write the numbers as JSON")
    add_message_flags(shared)
    benches = parser.add_subparsers(dest="what", metavar="WHAT", title="what to measure (default: descriptors)")
    for name, (module, text) in BENCHES.items():
        bench = benches.add_parser(
            name,
            help=text,
            description=f"Measure {text}.",
            allow_abbrev=False,
            formatter_class=parser.formatter_class,
            parents=[shared],
        )
        module.configure(bench)


def run(args: argparse.Namespace) -> None:
    """Measure what is asked for and print its tables."""
    if args.what is None:
        for name in [name for name in ("imw", "hpatches") if getattr(args, name)] or ["descriptors"]:
            module, _ = BENCHES[name]
            defaults = argparse.ArgumentParser()
            module.configure(defaults)
            module.run(defaults.parse_args([]))
        return
    measured = BENCHES[args.what][0].run(args)
    if args.out is not None:
        write_json(args.out, strict({**measured, "environment": environment()}))
        print(f"numbers: {args.out}")
