"""Who may import whom, what an import costs, and what no file of the repository may say."""

from __future__ import annotations

import ast
import configparser
import graphlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import eval.cli
import train.cli

ROOT = Path(__file__).resolve().parents[1]
# What a package may import of the others. The benches are reached by the command lines alone, which name them as text.
MAY_IMPORT: dict[str, set[str]] = {
    "kornia_hardnet8": set(),
    "common": {"kornia_hardnet8"},
    "rendered": {"kornia_hardnet8", "common"},
    "train": {"kornia_hardnet8", "common"},
    "eval": {"kornia_hardnet8", "common", "rendered"},
    "benchmarks": {"kornia_hardnet8", "common", "rendered", "train", "eval"},
}
# What a room of eval may import of the others: first the ground floors; above them a benchmark imports no other,
# but for what is said here: dev judges by what the others measure, report knows what it shows.
GROUND_OF_EVAL: dict[str, set[str]] = {"features": set(), "pages": set(), "core": {"features", "pages"}}
ABOVE_IN_EVAL: dict[str, set[str]] = {
    "imw": set(),
    "hpatches": set(),
    "sequences": set(),
    "brown": set(),
    "webcam": set(),
    "reconstruct": set(),
    "match": {"reconstruct"},
    "dev": {"imw", "sequences", "webcam"},
    "report": {"brown", "dev"},
}
PACKAGES = tuple(MAY_IMPORT)
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
DISTRIBUTION_OF = {"cv2": "opencv-python-headless", "PIL": "pillow", "pillow_heif": "pillow-heif"}


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that a module imports anywhere, relative ones resolved against ``package``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (parent, node.module) if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "need"):
                yield str(node.args[0].value)


def on_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: all but the bodies of functions and ``if TYPE_CHECKING``."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
        if inner:
            for child in inner:
                waiting.extend(child.body if isinstance(child, ast.ExceptHandler) else [child])
        else:
            yield node


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def breaks_the_rules(importer: str, imported: str) -> bool:
    """Whether a module of the package ``importer`` may not import the dotted name ``imported``."""
    top, *inner = imported.split(".")
    if top not in PACKAGES or top == importer:
        return False
    is_private = any(name.startswith("_") and not name.startswith("__") for name in inner)
    return is_private or top not in MAY_IMPORT[importer]


def breaks_the_floors(importer: str, imported: str) -> bool:
    """Whether a module of eval may not import the dotted name ``imported`` for the rooms that both lie in."""
    if not (importer.startswith("eval.") and imported.startswith("eval.")):
        return False
    room, other = (name.split(".")[1] for name in (importer, imported))
    if room in ABOVE_IN_EVAL:
        return other not in {room, *GROUND_OF_EVAL, *ABOVE_IN_EVAL[room]}
    return room in GROUND_OF_EVAL and other not in {room, *GROUND_OF_EVAL[room]}


def test_the_rules_themselves() -> None:
    assert breaks_the_floors("eval.imw.stereo", "eval.sequences.protocols.match_pair")
    assert breaks_the_floors("eval.core.pairs", "eval.imw.scene.Scene")
    assert breaks_the_floors("eval.features.extract", "eval.core.matching")
    assert not breaks_the_floors("eval.dev.planes", "eval.sequences.protocols.match_pair")
    assert not breaks_the_floors("eval.webcam.command", "eval.core.distances.identity_matching")
    assert breaks_the_rules("kornia_hardnet8", "common.metrics")
    assert breaks_the_rules("common", "train")
    assert breaks_the_rules("eval", "common.metrics._rank")
    assert not breaks_the_rules("eval", "kornia_hardnet8.__version__")
    assert breaks_the_rules("eval", "train.losses")
    assert breaks_the_rules("train", "eval.core.matching.match_nn")
    assert breaks_the_rules("eval", "benchmarks.imw")
    assert not breaks_the_rules("train", "common.metrics.fpr95")
    assert not breaks_the_rules("eval", "kornia_hardnet8.HardNet8")
    names = imports(ast.parse("from . import a\nfrom ..b import c\nimport d.e\nimport_module('f.g')"), "train.stores")
    assert set(names) == {"train.stores.a", "train.b.c", "d.e", "f.g"}
    source = "import a\ndef f(): import b\ntry:\n import c\nexcept ImportError:\n import d\nif TYPE_CHECKING: import e"
    assert {name for node in on_import(ast.parse(source)) for name in imports(node, "")} == {"a", "c", "d"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_rules(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = package_of(path)
    names = set(imports(tree, package))
    assert [name for name in names if breaks_the_rules(package.split(".")[0], name)] == []
    assert [name for name in names if breaks_the_floors(module_of(path), name)] == []


def test_every_room_of_eval_has_its_floor() -> None:
    rooms = {path.relative_to(ROOT / "eval").parts[0].removesuffix(".py") for path in (ROOT / "eval").rglob("*.py")}
    assert rooms == {*GROUND_OF_EVAL, *ABOVE_IN_EVAL, "cli", "__init__", "__main__"}


def test_what_only_2020_needs_is_asked_for_by_the_command_line_and_where_data_are_opened() -> None:
    askers = {
        module_of(path)
        for path in (ROOT / "train").rglob("*.py")
        if any(name.startswith("train.recipes2020") for name in imports(ast.parse(path.read_text()), package_of(path)))
    }
    assert {name for name in askers if not name.startswith("train.recipes2020.")} == {"train.cli", "train.datasets"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: frozenset[str]) -> set[str]:
    """The modules of this repository that a module imports when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {name for node in on_import(tree) for name in imports(node, package_of(path))}
    return {name if name in modules else name.rpartition(".")[0] for name in names} & modules


def test_no_module_imports_itself_through_others() -> None:
    modules = frozenset(module_of(path) for path in SOURCES)
    waits_for = {module_of(path): imported_modules(path, modules) - {module_of(path)} for path in SOURCES}
    assert waits_for["eval.core.matching"] >= {"eval.core.nearest"}
    try:
        tuple(graphlib.TopologicalSorter(waits_for).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def required(extra: str | None) -> set[str]:
    """Names of the distributions that the metadata asks for, always or for an extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options.extras_require"][extra] if extra else config["options"]["install_requires"]
    return {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in lines.splitlines() if line}


def third_party(tree: ast.AST) -> set[str]:
    tops = {name.split(".")[0] for name in imports(tree, "")} - set(sys.stdlib_module_names) - set(PACKAGES)
    return {DISTRIBUTION_OF.get(top, top.lower()) for top in tops - {""}}


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("kornia_hardnet8", None),
        *((p, "train") for p in ("common", "train")),
        *((p, "eval") for p in ("common", "rendered", "eval", "benchmarks")),
    ],
)
def test_what_a_package_imports_is_what_its_extra_installs(package: str, extra: str | None) -> None:
    allowed = required(None) | (required(extra) if extra else set())
    optional = {
        name for other in ("eval", "train", "dask", "heic", "onnx", "openvino", "poselib") for name in required(other)
    }
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_import = {name for node in on_import(tree) for name in third_party(node)}
        assert at_import <= allowed, f"{path} imports {at_import - allowed} when it is imported"
        unknown = third_party(tree) - allowed - optional
        assert not unknown, f"{path} imports {unknown}, which no extra installs"


def test_using_the_library_costs_torch_and_kornia() -> None:
    code = (
        "import json, sys, torch, kornia, safetensors.torch; before = set(sys.modules); from kornia_hardnet8 import *; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "json.dump([sorted(new - set(sys.stdlib_module_names)), sorted(sys.modules)], sys.stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    new, modules = json.loads(done.stdout)
    assert new == ["kornia_hardnet8"]
    heavy = {"cv2", "pycolmap", "h5py", "matplotlib", "onnx", "onnxruntime", "openvino", "distributed", "train", "eval"}
    assert heavy.isdisjoint(modules)


def test_names_and_modules_of_the_package_are_found_when_they_are_asked_for() -> None:
    code = (
        "import kornia_hardnet8 as k; assert set(k.__all__) <= set(dir(k)); "
        "print(k.matchability.Matchability.__name__, k.HardNet8 is k.hardnet8.HardNet8, hasattr(k, 'HardNet9'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Matchability", "True", "False"]


LIGHT = ["kornia_hardnet8.cli", "common.colmap_worker", "eval.imw.colmap_bag", "eval.cli", "train.cli"]


@pytest.mark.parametrize("module", LIGHT)
def test_help_errors_and_workers_wait_for_no_torch(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'kornia', 'matplotlib'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("cli", [train.cli, eval.cli], ids=lambda cli: cli.__name__)
def test_every_command_has_its_module(cli: object) -> None:
    for name, (module, text) in cli.COMMANDS.items():  # type: ignore[attr-defined]
        assert importlib.util.find_spec(module.partition(":")[0]), f"command {name}: there is no module {module}"
        assert len(text.splitlines()) == 1
    grouped = [name for names in cli.GROUPS.values() for name in names]  # type: ignore[attr-defined]
    assert sorted(grouped) == sorted(cli.COMMANDS)  # type: ignore[attr-defined]


# Written so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w./~-])/(?:work|root|home|Users|opt/wheels|opt/pypi)/[\w.]")
REGISTRY_HOST = re.compile(r"\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|deb\.debian\.org|npmjs\.org)\b")


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_registry() -> None:
    bad = []
    for path in tracked_files():
        if path == Path(__file__).resolve() or path.suffix in (".safetensors", ".png", ".jpg", ".h5", ".npy", ".npz"):
            continue
        text = path.read_text(encoding="utf-8")
        bad += [
            f"{path.relative_to(ROOT)}: {m.group()}" for p in (MACHINE_PATH, REGISTRY_HOST) for m in p.finditer(text)
        ]
    assert bad == []


def test_what_is_looked_for_is_found() -> None:
    assert MACHINE_PATH.search("data in " + "/".join(["", "home", "me", "data"]))
    assert not MACHINE_PATH.search("docs/home/page.md")
    assert REGISTRY_HOST.search("https://" + ".".join(["pypi", "org"]) + "/simple")
