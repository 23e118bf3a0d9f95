"""What the README and the pages show is so: commands parse and run, configs and pipelines load, names are all there."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import real_models
import typer
from commands import command
from documents import PAGES, ROOT, Block, blocks, commands, mentioned
from unified_backend import errors
from unified_backend.cli import app
from unified_backend.ensembles.yaml_file import read
from unified_backend.forms.reference import ENGINES
from unified_backend.parameter_help import said_of_fields
from unified_backend.pbtxt import read_pbtxt
from unified_backend.repository import parameters_of
from unified_backend.serving import metrics
from unified_backend.settings import Settings, read_settings
from unified_backend.tensorrt_options import TensorRtOptions, accelerator_parameters

sys.path[:0] = [str(ROOT / "scripts/docs"), str(ROOT / "benchmarks")]
formats = importlib.import_module("formats")

PACKAGE = ROOT / "backend/unified_backend"
TROUBLES = ROOT / "docs/troubleshooting.md"
BLOCKS = [block for page in PAGES for block in blocks(page)]
# What no test can run or read, by its first words, and why.
PROSE = {
    "model_repository/": "the layout of a folder",
    "classifier/config.pbtxt ": "the layout of a folder, whose parameters are read with all others",
    "backend/": "the layout of a folder",
    "auto_complete_config (": "a drawing",
    "page, a photograph": "what `make demo` prints, which needs a server",
    "unified: loaded model=": "a line of a server's log; tests/server reads it",
    "precision fp16: ": "a line of a log; tests/unit/test_halved.py reads it",
    "precision int8: ": "a line of a log; tests/unit/test_quantisation.py reads it",
    "triton_launch_mode: ": "a file of Model Analyzer's; tests/server/test_model_analyzer.py has its fields",
    "[   9 s] ": "what tune prints meanwhile; tests/server/test_tuning.py reads such lines",
    "Model,Batch,Concurrency": "what Model Analyzer writes",
    "sample 1 of 4: ": "an error of a request; tests/server/test_stages.py gets it",
}
# Programs that are not ours.
OTHERS = {
    "apt-get": "changes the machine",
    "pip": "needs an index; its extras are held to pyproject.toml below",
    "mkdir": "makes folders",
    "cp": "copies the reader's own files",
    "export": "sets a variable; its name is held to the code below",
    "openssl": "makes keys; tests/unit/test_cache_signing.py makes such",
    "head": "makes a secret",
    "chromium-headless-shell": "makes a picture of a page",
}
PARAMETER = re.compile(r'parameters \{ key: "[^"]+" value \{ string_value: "(?:[^"\\]|\\.)*" \} \}')
CONFIG = re.compile(r"(name|backend|platform|max_batch_size|input|output|parameters|optimization)\b\s*[:\[{]")


def parse(words: list[str]) -> None:
    """Have a command line read by the program, which does not run it."""
    found, rest = typer.main.get_command(app), list(words)
    while hasattr(found, "commands"):
        assert rest and rest[0] in found.commands, f"there is no command {' '.join(words)}"
        found = found.commands[rest.pop(0)]
    found.make_context(words[0], rest)


@pytest.mark.parametrize("block", [block for block in BLOCKS if any(commands(block))], ids=str)
def test_commands_that_are_shown_are_commands(block):
    for words in commands(block):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_mentioned_are_commands(page):
    for words in mentioned(page):
        try:
            parse(words)
        except typer.BadParameter as error:
            assert not error.message, f"{' '.join(words)}: {error}"  # else an argument that the sentence leaves out


def is_known(block: Block) -> bool:
    """Whether the tests here read a block, or have the reason why they do not."""
    first = block.lines[0]
    if any(commands(block)) or any(first.startswith(words) for words in PROSE) or CONFIG.match(first):
        return True
    if first.startswith("[project") or first.startswith(("from ", "import ", '"""', "# ")):
        return True
    return first.split()[0] in {*OTHERS, "make", ".venv/bin/python"}


def test_every_block_is_read_by_a_test_or_has_a_reason():
    assert [str(block) for block in BLOCKS if not is_known(block)] == []
    unused = [words for words in PROSE if not any(block.lines[0].startswith(words) for block in BLOCKS)]
    assert unused == []


def test_other_programs_are_called_with_what_is_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "\n".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"^    make ([a-z]+)|`make ([a-z]+)", text, re.MULTILINE)) <= {
        pair for name in targets for pair in ((name, ""), ("", name))
    }
    for named in re.findall(r"(?:triton-unified-backend|'\.)\[([\w,]+)\]", text):
        assert set(named.split(",")) <= extras.keys()
    for script, options in re.findall(r"python ((?:benchmarks|scripts)/\w+\.py)([^`\n#]*)", text):
        source = (ROOT / script).read_text()
        assert [
            option for option in re.findall(r"--[a-z-]+", options) if option[2:].replace("-", "_") not in source
        ] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if CONFIG.match(block.lines[0])], ids=str)
def test_configs_and_pipelines_are_read(block, tmp_path, caplog):
    if "steps:" in block.lines:
        (tmp_path / "pipeline.yaml").write_text(block.text.replace("  ...\n", ""))
        read(tmp_path / "pipeline.yaml")
        return
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.pbtxt").write_text(block.text.replace("...\n", ""))
    config = read_pbtxt(folder / "config.pbtxt")
    read_settings(
        "model/1", accelerator_parameters("model/1", config, parameters_of(config, "model/1")), tuple(ENGINES)
    )
    assert caplog.records == []


def test_parameters_that_are_shown_are_read(tmp_path, caplog):
    shown = {match[0] for page in PAGES for match in PARAMETER.finditer(page.read_text())}
    assert len(shown) >= 5
    for number, line in enumerate(sorted(shown)):
        path = tmp_path / str(number) / "config.pbtxt"
        path.parent.mkdir()
        path.write_text(line)
        read_settings("model/1", parameters_of(read_pbtxt(path), "model/1"), tuple(ENGINES))
    assert caplog.records == []


@pytest.mark.parametrize(
    "block", [one for one in BLOCKS if one.lines[0].startswith(("from ", "import ", '"""', "# post"))], ids=str
)
def test_python_that_is_shown_is_python(block):
    compile(block.text, block.page, "exec")


# Commands that run for real, in their order: as they stand on a page, what is put for names there, and the exit code.
RUN = (
    ("check models/pitch.unified", {}, 0),
    ("check models/pitch", {}, 1),
    ("inspect models/pitch/1/model.savedmodel", {}, 0),
    ("toolchain install tensorflow --wheelhouse /media/wheels", {"/media/wheels": "wheels"}, 2),
    ("ensemble graph ensembles/ocr/ocr.yaml --format svg", {}, 0),
    ("build models", {"models": "small"}, 0),
    ("cache ls", {}, 0),
    ("cache explain models/xor.unified", {"models/xor.unified": "small/xor.unified"}, 0),
    ("cache export entries.tar.zst", {}, 0),
    ("cache import entries.tar.zst", {}, 0),
)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Path:
    """A folder with what the pages speak of: a SavedModel, the same with its old config, and two tiny models."""
    folder = tmp_path_factory.mktemp("sandbox")
    saved = real_models.path("basic-pitch", "saved_models/icassp_2022/nmp")
    shutil.copytree(saved, folder / "models/pitch.unified/1/saved_model")
    shutil.copytree(saved, folder / "models/pitch/1/model.savedmodel")
    (folder / "models/pitch/config.pbtxt").write_text('platform: "tensorflow_savedmodel"\n')
    for name in ("xor.unified", "temperature"):
        shutil.copytree(ROOT / "model_repository" / name, folder / "small" / name)
    (folder / "ensembles").symlink_to(ROOT / "ensembles")
    (folder / "wheels").mkdir()
    return folder


@pytest.mark.parametrize(("shown", "names", "code"), RUN, ids=[shown for shown, _, _ in RUN])
def test_commands_that_are_shown_run_and_print_what_is_shown(sandbox, monkeypatch, shown, names, code):
    words = shown.split()
    of = [block for block in BLOCKS if words in commands(block)]
    assert of or any(words in mentioned(page) for page in PAGES)
    monkeypatch.chdir(sandbox)
    done = command(sandbox, *(names.get(word, word) for word in words), env={"TRITON_UNIFIED_TOOLCHAINS": "installed"})
    assert done.returncode == code, done.stderr
    printed = " ".join((done.stdout + done.stderr).split())
    for line in (line for block in of[:1] for line in following(block, words)):
        for old, new in names.items():
            line = line.replace(old, new)
        assert all(" ".join(part.split()) in printed for part in line.split("...")), line
    if "graph" in words:
        assert done.stdout == (ROOT / "docs/images/ocr.svg").read_text()


def following(block: Block, words: list[str]) -> list[str]:
    """The lines below a command, up to the next one: those that are the same on every machine."""
    shown = [
        line.startswith("$ triton-unified") and line.removeprefix("$ triton-unified ").split("  ")[0]
        for line in block.lines
    ]
    if " ".join(words) not in shown or block.lines[0].startswith("$ triton-unified cache"):
        return []  # of the cache, sizes and times are another machine's
    below = block.lines[shown.index(" ".join(words)) + 1 :]
    end = next((at for at, line in enumerate(below) if line.startswith("$ ")), len(below))
    return [line for line in below[:end] if not line.startswith(("seconds:", "execution:", "cache:", "..."))]


def test_the_stage_that_is_shown_works():
    import numpy as np

    [block] = [one for one in BLOCKS if one.lines[0].startswith("# postprocess.py")]
    names: dict = {}
    exec(compile(block.text, block.page, "exec"), names)
    assert names["best"](np.eye(3, 10, dtype=np.float32)).tolist() == [[0], [1], [2]]


@functools.cache
def nodes() -> list[ast.AST]:
    """All that the package's code is made of."""
    return [node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]


def error_classes() -> set[str]:
    """Every subclass of UnifiedError in the package."""
    found: set[str] = {"UnifiedError"}
    more = found
    classes = [node for node in nodes() if isinstance(node, ast.ClassDef)]
    while more:
        more = {
            node.name for node in classes for base in node.bases if isinstance(base, ast.Name) and base.id in found
        } - found
        found |= more
    return found - {"UnifiedError"}


def test_each_class_of_errors_has_an_entry():
    found = error_classes()
    assert {name for name in errors.__all__ if name.endswith("Error") or name == "Refused"} - {"UnifiedError"} <= found
    text = TROUBLES.read_text()
    headings = set(re.findall(r"^## (\w+)$", text, re.MULTILINE))
    assert {name for name in found if not name.startswith("_")} <= headings
    assert [name for name in found if f"`{name}`" not in text and name not in headings] == []
    for heading in headings & found:
        section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        assert "### `" in section


def worded(node: ast.AST) -> str:
    """The text of a string in the code, with … for each value in it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_messages_that_are_quoted_are_those_of_the_code():
    said = set(map(worded, nodes()))
    quoted = re.findall(r"^### `(.+)`$", TROUBLES.read_text(), re.MULTILINE)
    assert len(quoted) > 40
    assert [message for message in quoted if not any(message in text for text in said)] == []


def test_every_variable_of_the_environment_has_a_row_and_no_other():
    page = (ROOT / "docs/reference/environment.md").read_text()
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    known = set(re.findall(r"TRITON_UNIFIED_[A-Z_]*[A-Z]", code))
    assert re.findall(r"^\| `(\w+)`", page, re.MULTILINE) == sorted(known, key=page.index)
    assert {name for one in PAGES for name in re.findall(r"TRITON_UNIFIED_[A-Z_]*[A-Z]", one.read_text())} <= known


def test_every_metric_has_a_row_and_no_other():
    rows = re.findall(r"^\| (`unified_[^|]*)\|", (ROOT / "docs/reference/metrics.md").read_text(), re.MULTILINE)
    named = [re.findall(r"`(\w+)`", row) for row in rows]
    whole = {
        first.removesuffix("_bucket") + end if end.startswith("_") else end
        for first, *more in named
        for end in (first, *more)
    }
    assert whole == metrics._FAMILIES.keys()


def test_every_setting_has_its_line_for_the_page_of_parameters():
    fields = {field.name for kind in (Settings, TensorRtOptions) for field in dataclasses.fields(kind)}
    assert said_of_fields().keys() == fields


def test_every_command_has_a_row_in_the_readme():
    table = (ROOT / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    names = typer.main.get_command(app).commands.keys() - {"version"}
    assert [name for name in sorted(names) if not re.search(rf"`(triton-unified )?{name}\b", table)] == []


def test_the_readmes_table_of_formats_is_the_sum_of_the_whole_one():
    def table(page: Path) -> str:
        return page.read_text().partition(formats.BEGIN)[2].partition(formats.END)[0].strip()

    rows = formats.read(table(formats.EVERY_MODEL))
    assert table(formats.EVERY_MODEL) == formats.every_model(rows).strip()
    assert table(formats.EVERY_FORMAT) == formats.every_format(rows).strip()
