"""The README and the pages of docs/, taken apart into blocks of code and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "commands", "mentioned"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted(ROOT.glob("docs/[!_]*/**/*.md")),
    *sorted(ROOT.glob("docs/*.md")),
)
_MENTIONED = re.compile(r"`(?:\.venv/bin/)?(triton-unified [a-z][^`]*)`")
_SHOWN = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?triton-unified .*")


@dataclass(frozen=True)
class Block:
    """Some lines that stand as code on a page, in a fence or indented."""

    page: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.lines[0]}"

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def blocks(page: Path) -> Iterator[Block]:
    """Every block of code of a page; what continues an item of a list is none."""
    name, lines, fenced = str(page.relative_to(ROOT)), [""], False
    found: list[str] = []
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            if fenced or found:
                yield Block(name, tuple(found))
            found, fenced = [], not fenced
        elif fenced:
            found.append(line)
        elif line.startswith("    ") and (found or not lines[-1]):
            found.append(line[4:])
        elif found and not line:
            found.append("")
        elif found:
            yield Block(name, tuple("\n".join(found).rstrip().splitlines()))
            found = []
        lines.append(line)
    if found:
        yield Block(name, tuple("\n".join(found).rstrip().splitlines()))


def commands(block: Block) -> Iterator[list[str]]:
    """The `triton-unified` command lines of a block: their words behind that name."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if _SHOWN.fullmatch(line):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            yield words[next(at for at, word in enumerate(words) if word.endswith("triton-unified")) + 1 :]


def mentioned(page: Path) -> Iterator[list[str]]:
    """Likewise of those that stand in a sentence or a table."""
    for match in _MENTIONED.finditer(" ".join(page.read_text().split())):
        yield shlex.split(re.sub(r"[\[\]…]|\.\.\.", "", match[1]))[1:]
