"""What mkdocs calls while it builds the site: pages get what is generated for them, and links out of docs/ a place.

What stands behind `<!-- generated: NAME -->` on a page, up to `<!-- until here -->`, is for who reads the file itself:
in the site it is what the package says, so that it cannot be stale.
Pages of the repository that lie outside docs/ (the changelog, figures of benchmarks) become pages of the site; a link
to any other file of the repository becomes its path, for the site does not know where the repository is published.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from reference_commands import commands
from reference_messages import messages
from reference_parameters import parameters

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"parameters": parameters, "commands": commands, "messages": messages}
# Of the repository -> its place in the site.
ADOPTED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "THIRD_PARTY.md": "third-party.md",
    "ensembles/README.md": "tasks/shipped-pipelines.md",
    **{f"benchmarks/results/{path.name}": f"results/{path.name}" for path in ROOT.glob("benchmarks/results/*.md")},
}
_MARK = re.compile(r"<!-- generated: (\w+) -->.*?<!-- until here -->", re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for path, place in ADOPTED.items():
        files.append(File.generated(config, place, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put in what is generated, and lead links to where their targets are."""
    place = page.file.src_uri
    origin = next((path for path, adopted in ADOPTED.items() if adopted == place), f"docs/{place}")
    written = _MARK.sub(lambda match: GENERATED[match[1]](), markdown)
    return _LINK.sub(lambda match: _led(match, origin, place), written)


def _led(match: re.Match[str], origin: str, place: str) -> str:
    text, target, anchor = match[1], match[2], match[3] or ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    if path.startswith("docs/"):
        to = path.removeprefix("docs/")
    elif path == "README.md":
        to = "index.md"
    elif path in ADOPTED:
        to = ADOPTED[path]
    elif (ROOT / path).exists():
        return f"`{path}`" if text.strip("`/") in path else f"{text} (`{path}`)"
    else:
        return match[0]  # nothing there: mkdocs says so
    return f"[{text}]({posixpath.relpath(to, posixpath.dirname(place) or '.')}{anchor})"
