"""Definitions of pipelines: what does not fit is told with its line, before anything is written."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
from commands import command, printed
from pipelines import DEFINITION, write_pipeline
from unified_backend.cache import Cache
from unified_backend.ensembles.definition import read_definition
from unified_backend.ensembles.members import wired
from unified_backend.ensembles.writing import write_ensemble, write_fused
from unified_backend.errors import Refused, UnifiedError

ADD_STEP = DEFINITION[DEFINITION.index("  - model: add") : DEFINITION.index("  - stage: join.py")]


@pytest.fixture
def define(tmp_path):
    """A definition with some words replaced; its path."""

    def write(*changes: tuple[str, str]) -> Path:
        text = DEFINITION
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return write_pipeline(tmp_path, text)

    return write


@pytest.fixture
def build(tmp_path, define):
    """What the command does to build such a definition into `models`, in this process; the names written."""
    with Cache(tmp_path / "cache") as cache:

        def run(*changes: tuple[str, str], fused: bool = False, replace: bool = False) -> list[str]:
            models = tmp_path / "models"
            found = wired(read_definition(define(*changes)), models, cache)
            return [path.name for path in (write_fused if fused else write_ensemble)(found, models, replace)]

        yield run


def told(build, *changes: tuple[str, str], **options: bool) -> str:
    """The error of a build that fails."""
    with pytest.raises(UnifiedError) as caught:
        build(*changes, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line", "why"),
    [
        ([("max_items", "max_item")], 4, "there is no such key, did you mean max_items?"),
        ([("name: sums\n", "")], 2, "name is missing"),
        ([("name: sums", "name: [sums")], 3, "expected ',' or ']'"),
        ([("max_batch_size: 4", "max_batch_size: 0")], 3, "0 is less than the minimum of 1"),
        ([("dtype: INT32", "dtype: INT31")], 6, "'INT31' is not one of"),
        ([("name: sums", "name: a/b")], 2, '"a/b" may hold letters, digits'),
        ([("  - model: add\n    from", "  - from")], 12, "a step has either a model or a stage"),
        ([("    inputs: [n]", "    inputs: []")], 10, "it must be names"),
        ([("name: sums", "name: sums\nname: other")], 3, "name is there twice"),
        ([("stage: make.py", "stage: makes.py")], 9, "there is nothing of that name beside sums.yaml"),
        ([("from: add.onnx", "from: nowhere.onnx")], 13, "from is nowhere.onnx"),
        ([("inputs: [n]", "inputs: [m]")], 10, 'step 1 (make.py) takes "m": what is there before this step is n'),
        ([("inputs: [n]", "inputs: {m: n}")], 10, 'step 1 (make.py) has no input "m": it has n'),
        (
            [("outputs: {x: pairs, unused", "outputs: {x: n, unused")],
            11,
            'step 1 (make.py) gives "n" again: inputs gives it already',
        ),
        ([("outputs: [text, count]\nsteps", "outputs: [text, sum]\nsteps")], 7, 'output "sum" is the tensor "sum"'),
        ([("inputs: {x: pairs, y: sums}", "inputs: {x: pairs}")], 17, 'step 3 (join.py) needs the input "y"'),
        ([("dtype: INT32", "dtype: INT64")], 10, "INT64 [1, 1]: the types are TYPE_INT32 and TYPE_INT64"),
        ([("dims: [1]", "dims: [1, 1]")], 10, "the ranks are 2 and 3"),
        ([("dims: [1]", "dims: [2]")], 10, "axis 1 is 1 and 2"),
        ([("outputs: [text, count]\nsteps", "outputs: [text, sums]\nsteps")], 7, "Hand it through a stage last"),
        ([("from: add.onnx", "parameters: {tf32: true}")], 13, "the model of the repository has its own config.pbtxt"),
        ([("    from: add.onnx\n", "")], 12, "there is no model add"),
        ([("from: add.onnx", "from: make.py")], 12, "step 2 (add): add/1: no model found"),
        (
            [(ADD_STEP, ADD_STEP + ADD_STEP.replace("add.onnx", "sums.yaml").replace("y: sums", "y: again"))],
            16,
            "has the name",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_line(build, tmp_path, changes, line, why):
    words = told(build, *changes)
    assert f"sums.yaml:{line}:" in words
    assert why in words
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_a_stage_that_wants_one_row_and_is_given_items(build, tmp_path):
    (tmp_path / "one.py").write_text(
        "from unified_backend.stages.user import stage\n"
        '@stage(inputs={"x": "FP32[1,2]"}, outputs={"z": "FP32[1,2]"})\n'
        "def one(x):\n    return x\n"
    )
    step = "  - stage: one.py\n    inputs: {x: pairs}\n    outputs: {z: one}\n"
    words = told(build, (ADD_STEP, step + ADD_STEP))
    assert "it wants one row, of the sample, and there is one for each item" in words


@pytest.mark.parametrize("side", [4, 5])
def test_a_picture_of_another_size_than_the_model_takes(build, tmp_path, side):
    (tmp_path / "picture.py").write_text(
        "from nvidia.dali import fn, pipeline_def, types\n\n"
        "@pipeline_def(output_dtype=types.FLOAT, output_ndim=3)\n"
        "def picture():\n"
        '    files = fn.external_source(name="file", dtype=types.UINT8, ndim=1)\n'
        f"    small = fn.resize(fn.decoders.image(files, output_type=types.RGB), size=[{side}, 4])\n"
        '    return fn.cast(small, dtype=types.FLOAT, name="x")\n'
    )
    net = '<ir_version: 9, opset_import: ["":17]> g (float[N,4,4,3] x) => (float[N,4,4,3] y) { y = Neg (x) }'
    onnx.save(onnx.parser.parse_model(net), tmp_path / "net.onnx")
    steps = (
        "  - stage: picture.py\n    inputs: {file: image}\n    outputs: {x: small}\n"
        "  - model: net\n    from: net.onnx\n    inputs: {x: small}\n    outputs: {y: negative}\n"
    )
    changes = (
        ("inputs:\n  n:", "inputs:\n  image: {dtype: STRING, dims: [1]}\n  n:"),
        ("outputs: [text, count]\nsteps:\n", "outputs: [text, count, negative]\nsteps:\n" + steps),
    )
    if side == 4:
        assert "sums_picture" in build(*changes)
    else:
        words = told(build, *changes)
        assert (
            'step 2 (net) takes "x" as FP32 [-1, 4, 4, 3], and "small" of step 1 (picture.py) is FP32 [1, 5, 4, 3]'
            in words
        )
        assert "axis 1 is 4 and 5" in words


def test_an_input_that_nobody_takes(build):
    assert 'input "m" is not used' in told(build, ("inputs:\n  n:", "inputs:\n  m: {dtype: FP32, dims: [1]}\n  n:"))


def test_a_step_of_which_nothing_is_used_is_not_asked(build, tmp_path):
    """Triton refuses an ensemble with such a step."""
    build(
        (
            "  - stage: join.py",
            f"{ADD_STEP.replace('y: sums', 'y: more').replace('model: add', 'model: add_2')}  - stage: join.py",
        )
    )
    text = (tmp_path / "models/sums/config.pbtxt").read_text()
    assert 'model_name: "add"' in text
    assert "add_2" not in text


def test_a_model_of_fixed_batch_takes_no_items(build, tmp_path):
    one = """<ir_version: 9, opset_import: ["":17]> g (float[1,2] x) => (float[1,1] y)
    <int64[1] axes = {1}> { y = ReduceSum <keepdims = 1> (x, axes) }"""
    onnx.save(onnx.parser.parse_model(one), tmp_path / "one.onnx")
    words = told(build, ("from: add.onnx", "from: one.onnx"))
    assert "it takes 1 rows, and is given one for each item" in words


def test_a_stage_in_two_steps_and_a_model_that_two_pipelines_bring(build, tmp_path):
    more = (
        "  - stage: make.py\n    inputs: [n]\n    outputs: {x: again, unused: nothing}\n"
        "  - model: add\n    from: add.onnx\n    inputs: {x: again}\n    outputs: {y: others}\n"
        "  - stage: join.py\n    inputs: {x: again, y: others}\n    outputs: {text: second, count: two}\n"
    )
    twice = ("outputs: [text, count]\nsteps:\n", "outputs: [text, count, second]\nsteps:\n" + more)
    assert "add" in build(twice)
    assert "add" not in build(("name: sums", "name: more"))  # the one that is there is the same


AGAIN = ADD_STEP.replace("y: sums", "y: others")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("second", "why"),
    [
        (AGAIN.replace("from: add.onnx", "from: add.onnx\n    parameters: {tf32: true}"), "and another parameters"),
        (AGAIN.replace("from: add.onnx", "from: add.onnx\n    files: [make.py]"), "and another files"),
    ],
)
def test_one_model_with_different_parameters_has_two_names(build, tmp_path, second, why, fused):
    words = told(build, (ADD_STEP, ADD_STEP + second), fused=fused)
    assert f"step 3 (add) has the name of step 2 (add), {why}" in words
    assert "Name it otherwise: `model: add_2`, with the same `from`" in words
    assert build((ADD_STEP, ADD_STEP + second.replace("model: add", "model: add_2")), fused=fused)


def test_a_model_of_samples_and_of_items_takes_the_larger_batch(build, tmp_path):
    (tmp_path / "pair.py").write_text(
        "from unified_backend.stages.user import stage\n"
        '@stage(inputs={"n": "INT32[1,1]"}, outputs={"x": "FP32[1,2]"})\n'
        "def pair(n):\n    return n.repeat(2, 1).astype('float32')\n"
    )
    steps = "  - stage: pair.py\n    inputs: [n]\n    outputs: {x: pair}\n"
    steps += ADD_STEP.replace("x: pairs", "x: pair").replace("y: sums", "y: first")
    build(("steps:\n", "steps:\n" + steps))
    assert "max_batch_size: 16" in (tmp_path / "models/add/config.pbtxt").read_text()


def test_a_model_that_another_pipeline_uses_is_not_replaced_by_another(build, tmp_path):
    build()
    config = tmp_path / "models" / "add" / "config.pbtxt"
    other = ("name: sums", "name: more")
    for change, why in (
        (("max_items: 16", "max_items: 8"), "its max_batch_size is 16, and would be 8"),
        (("from: add.onnx", "from: add.onnx\n    parameters: {tf32: true}"), "its files or its config would be others"),
        (("from: add.onnx", "from: add.onnx\n    files: [make.py]"), "its files or its config would be others"),
    ):
        for replace in (False, True):
            with pytest.raises(Refused, match=f"the pipeline sums uses add too: {why}"):
                build(other, change, replace=replace)
        assert {path.name for path in (tmp_path / "models").iterdir()} == {"sums", "sums_make", "sums_join", "add"}
        assert "max_batch_size: 16" in config.read_text()
    assert "add" in build(other, ("max_items: 16", "max_items: 32"), replace=True)
    assert "max_batch_size: 32" in config.read_text()


def test_a_model_of_another_backend_is_not_fused(build, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "1").mkdir(parents=True)
    (theirs / "config.pbtxt").write_text(
        'backend: "onnxruntime" max_batch_size: 16 input { name: "x" data_type: TYPE_FP32 dims: [2] }'
        ' output { name: "y" data_type: TYPE_FP32 dims: [1] }'
    )
    change = ("from: add.onnx", "from: theirs")
    assert "step 2 (add) is a model of the backend onnxruntime" in told(build, change, fused=True)
    assert "add" in build(change)


def test_a_pipeline_and_its_model_of_one_name(build):
    assert "has the name of the pipeline" in told(build, ("name: sums", "name: add"))


def test_an_output_whose_rows_are_scalars(build, tmp_path):
    (tmp_path / "flat.py").write_text(
        "from unified_backend.stages.user import stage\n"
        '@stage(inputs={"x": "FP32[-1,2]"}, outputs={"z": "FP32[-1]"})\n'
        "def flat(x):\n    return x[:, 0]\n"
    )
    step = "  - stage: flat.py\n    inputs: {x: pairs}\n    outputs: {z: flat}\n"
    given = ("outputs: [text, count]\nsteps", "outputs: [text, flat]\nsteps")
    assert 'output "flat" is FP32 [-1]' in told(build, (ADD_STEP, step + ADD_STEP), given)


def test_what_is_written_is_named_and_not_overwritten(define, build, tmp_path):
    models = tmp_path / "models"
    written = {"sums", "sums_make", "sums_join", "add"}
    named = printed(tmp_path, "ensemble", "build", define(), "--into", models)
    assert {path.rpartition("/")[2] for path in named["written"]} == written
    assert {path.name for path in models.iterdir()} == written
    assert build() == []  # it is all there
    for name in ("add", "sums_make"):
        config = models / name / "config.pbtxt"
        config.write_text(config.read_text() + "# by hand\n")
    again = command(tmp_path, "ensemble", "build", define(), "--into", models)
    assert again.returncode == 2
    assert "has add, sums_make already" in " ".join(again.stderr.split())
    assert build(replace=True) == ["add", "sums_make"]


def test_the_command_fails_with_the_words_of_what_does_not_fit(define, tmp_path):
    done = command(tmp_path, "ensemble", "build", define(("dims: [1]", "dims: [2]")), "--into", tmp_path / "models")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "sums.yaml:10:5: step 1 (make.py) takes" in " ".join(done.stderr.split())


def test_a_model_of_the_repository_must_take_the_items(build, tmp_path):
    build()
    config = tmp_path / "models" / "add" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 16", "max_batch_size: 8"))
    theirs = ("    from: add.onnx\n", "")
    assert "step 2 (add) takes 8 rows at once, and the pipeline sends up to 16" in told(build, theirs, replace=True)
    assert "a fused pipeline carries its models with it" in told(build, theirs, replace=True, fused=True)


def test_a_fused_pipeline_is_one_model_that_checks_and_explains(build, tmp_path):
    assert build(fused=True) == ["sums"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["sums"]
    report = printed(tmp_path, "check", tmp_path / "models" / "sums", "--json")
    assert (report["loads"], report["format"], report["engine"]) == (True, "pipeline", "pipeline")
    explained = printed(tmp_path, "cache", "explain", tmp_path / "models" / "sums", "--json")
    assert {entry["state"] for entry in explained["entries"]} == {"cached"}
    inspected = printed(tmp_path, "inspect", tmp_path / "models" / "sums" / "1", "--json")
    assert inspected["format"] == "pipeline"
    built = command(tmp_path, "build", tmp_path / "models")
    assert built.returncode == 0


def test_a_damaged_pipeline_is_told(build, tmp_path):
    build(fused=True)
    path = tmp_path / "models" / "sums" / "1" / "pipeline.json"
    path.write_text(path.read_text()[:-40])
    done = command(tmp_path, "check", tmp_path / "models" / "sums")
    assert done.returncode == 1
    assert "pipeline.json cannot be used" in done.stderr
    assert "ensemble build" in " ".join(done.stderr.split())


def test_the_drawings_name_every_tensor_with_type_and_shape(define, tmp_path):
    path = define()
    mermaid = command(tmp_path, "ensemble", "graph", path).stdout
    for arrow in (
        'request -- "n INT32 [1, 1]" --> step1',
        'step1 -- "pairs FP32 [-1, 2]" --> step2',
        'step2 -- "sums FP32 [-1, 1]" --> step3',
        'step3 -- "count INT32 [1, 1]" --> response',
    ):
        assert arrow in mermaid
    command(tmp_path, "ensemble", "graph", path, "--format", "svg", "--out", tmp_path / "sums.svg")
    texts = [node.text for node in ElementTree.parse(tmp_path / "sums.svg").iter() if node.tag.endswith("}text")]
    assert "pairs FP32 [-1, 2]   from step 1 (make.py)" in texts
    assert {"make.py", "add", "join.py"} <= set(texts)
