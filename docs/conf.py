"""Settings of Sphinx: `make docs` builds the pages into docs/_build/html."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

from kornia_hardnet8 import __version__
from kornia_hardnet8.models import MODELS

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
GENERATED = DOCS / "_generated"
# Documents that lie beside what they are about, and the names of their pages.
OUTSIDE = {
    "examples": "examples/README.md",
    "third-party": "third_party/README.md",
    "model-card": "kornia_hardnet8/weights/h8E512.md",
    "small-card": "kornia_hardnet8/weights/h8small.md",
    "matchability-card": "kornia_hardnet8/weights/matchability.md",
    "surprises": "findings/README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}

project, release, author = "HardNet8 for kornia", __version__, "the authors of HardNet8 for kornia"
project_copyright = f"{author}. Code: Apache-2.0; weights: for research"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated/models.md", "package-index.md"]
html_theme = "furo"
html_title = f"HardNet8 for kornia {__version__}"
html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
myst_links_external_new_tab = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "description"
napoleon_use_ivar = True
# Output and command lines have no language.
highlight_language = "none"


def models_table() -> str:
    """The table of bundled models in markdown, from the data in the library."""
    lines = [
        "| model | for | takes | gives | `mr_size` | mAA@10 | mAP, changing light | weights | SHA-256 |",
        "|---" * 9 + "|",
    ]
    for model in MODELS.values():
        size = f"{model.patch_size} × {model.patch_size} gray"
        sizes = " and ".join(f"{mr_size:g}" for mr_size in model.mr_sizes)
        numbers = [f"{model.numbers[name]:.3f}" for name in ("poses/mAA@10", "fixed_camera/mAP")]
        lines.append(
            f"| `{model.name}` | {model.use} | {len(model.mr_sizes)} × {size} | {'1 … ' * (model.dims > 1)}{model.dims}"
            f" | {sizes} | {' | '.join(numbers)} | {model.weights_licence} | `{model.sha256[:8]}…` |"
        )
    return "\n".join(lines) + "\n"


def turned_links(text: str, source: Path, folder: Path) -> str:
    """The text of a document as a page in ``folder``: links to documents lead to their pages, others become text."""
    pages = {path.resolve(): path for path in DOCS.glob("*.md")}
    pages |= {(ROOT / path).resolve(): GENERATED / f"{name}.md" for name, path in OUTSIDE.items()}

    def turned(match: re.Match[str]) -> str:
        label, target, anchor = match.groups()
        page = pages.get((source.parent / target).resolve())
        return f"[{label}]({os.path.relpath(page, folder)}{anchor or ''})" if page else label

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)", turned, text)


def turn_links(app: Sphinx, docname: str, content: list[str]) -> None:
    """Called by Sphinx for each page that it reads."""
    if not docname.startswith("_generated/"):
        content[0] = turned_links(content[0], DOCS / f"{docname}.md", DOCS)


def setup(app: Sphinx) -> None:
    """Write the pages that are not here, and have links turned."""
    GENERATED.mkdir(exist_ok=True)
    (GENERATED / "models.md").write_text(models_table(), encoding="utf-8")
    for name, path in OUTSIDE.items():
        text = turned_links((ROOT / path).read_text(encoding="utf-8"), ROOT / path, GENERATED)
        (GENERATED / f"{name}.md").write_text(text, encoding="utf-8")
    app.connect("source-read", turn_links)
