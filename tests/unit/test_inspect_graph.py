"""`triton-unified inspect --graph`: the picture of a model's graph, and Netron beside it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import made_models
import onnx
import pytest
import torch_real_models
import tree_models
from commands import COMMAND, command, printed
from onnx import TensorProto, helper
from real_models import path as real_model
from test_halved import LINES
from unified_backend.drawing.folding import folded
from unified_backend.drawing.model_graph import Drawn, draw

SVG = "{http://www.w3.org/2000/svg}"
HEADER = '<ir_version: 9, opset_import: ["":17]> '
BRANCHES = (
    "g (float[N,4] x, bool[] c, int64[] n) => (float[N,4] y, float[N,4] z) {"
    " a = Relu(x)"
    " y = If (c) <then_branch = t () => (float[N,4] p) { p = Neg(a) },"
    "  else_branch = e () => (float[N,4] q) { b = Exp(a) q = Abs(b) }>"
    " z = Loop (n, c, x) <body = l (int64 i, bool k, float[N,4] s) => (bool o, float[N,4] r)"
    "  { o = Identity(k) r = Add(s, a) }> }"
)


def drawn(folder: Path, model: onnx.ModelProto) -> Drawn:
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return draw(folder / "net.onnx", "net")


def boxes(picture: str) -> list[list[str]]:
    """The lines in each box."""
    root = ElementTree.fromstring(picture)
    return [[text.text or "" for text in group.iter(f"{SVG}text")] for group in root.iter(f"{SVG}g")]


def labels(picture: str) -> list[str]:
    """The texts on the arrows."""
    return [text[0].tail or "" for text in ElementTree.fromstring(picture).findall(f"{SVG}text")]


def counted(picture: str) -> int:
    """Nodes that the boxes say they hold."""
    numbers = [int(line.split()[0]) for box in boxes(picture) for line in box if re.fullmatch(r"\d+ nodes", line)]
    alone = ElementTree.fromstring(picture).findall(f"{SVG}g/{SVG}rect")
    return sum(numbers) + sum(1 for rectangle in alone if "class" not in rectangle.attrib)


def chain(length: int, scope: str = "") -> onnx.ModelProto:
    """Nodes one after another, with a shortcut here and there; `scope` has a place for the node's number."""
    nodes, last = [], "x"
    for number in range(length):
        taken = [last, f"t{number - 5}"] if number % 7 == 6 else [last]
        out = "y" if number == length - 1 else f"t{number}"
        operator = "Add" if len(taken) == 2 else ("Relu", "Tanh", "Exp")[number % 3]
        name = f"{scope.format(number // 100)}/op_{number}" if scope else ""
        nodes.append(helper.make_node(operator, taken, [out], name=name))
        last = out
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y])
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("name", ["lines", "efficientnet", "pitch"])
def test_a_real_network_is_drawn_whole(tmp_path, name):
    model = {
        "lines": lambda: LINES,
        "efficientnet": lambda: torch_real_models.path("efficientnet.onnx"),
        "pitch": lambda: real_model("basic-pitch", "saved_models/icassp_2022/nmp.onnx"),
    }[name]()
    shown = printed(tmp_path, "inspect", model, "--graph", tmp_path / "net.svg")
    picture = (tmp_path / "net.svg").read_text()
    root = ElementTree.fromstring(picture)
    assert root.get("role") == "img"
    assert root.get("aria-label", "").startswith(f"The graph of {model.name}: ")
    assert "prefers-color-scheme: dark" in picture
    assert len(boxes(picture)) <= 60
    total = sum(count for operator, count in shown["facts"]["operators"].items() if operator != "Constant")
    assert counted(picture) == total == shown["graph"]["nodes"]
    titles = [box[0] for box in boxes(picture)]
    for row in (*shown["inputs"], *shown["outputs"]):
        assert any(row["name"].endswith(title.removeprefix("…")) for title in titles), row["name"]
    assert any(re.fullmatch(r"FP32 \[.*\]", label) for label in labels(picture))


def test_scopes_of_exporters_are_the_titles(tmp_path):
    picture = draw(torch_real_models.path("efficientnet.onnx"), "net").svg
    assert {"_blocks.1", "_blocks.2", "_blocks.15"} <= {box[0] for box in boxes(picture)}


def test_nodes_of_one_scope_share_a_box(tmp_path):
    picture = drawn(tmp_path, chain(3000, "/model/layers.{}/mlp")).svg
    layers = [box for box in boxes(picture) if box[0].startswith("layers.")]
    assert len(layers) == 30
    assert all(box[1] == "100 nodes" for box in layers)
    assert counted(picture) == 3000


def test_five_thousand_nodes_without_scopes_are_folded_into_runs(tmp_path):
    made = drawn(tmp_path, chain(5000))
    assert made.boxes <= 60
    assert counted(made.svg) == made.nodes == 5000
    sizes = [int(box[1].split()[0]) for box in boxes(made.svg) if box[1].endswith(" nodes")]
    assert max(sizes) < 5 * min(sizes)


def test_a_small_graph_has_a_box_for_each_node_and_shapes_on_the_arrows(tmp_path):
    text = (
        "g (float[N,4] x, int64[N,2] ids) => (float[N,3] scores, int64[N,2] same)"
        "<float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { h = MatMul(x, w) scores = Softmax(h) same = Identity(ids) }"
    )
    picture = drawn(tmp_path, onnx.parser.parse_model(HEADER + text)).svg
    titles = Counter(box[0] for box in boxes(picture))
    assert titles == Counter(["x", "ids", "MatMul", "Softmax", "Identity", "scores", "same"])
    assert "FP32 [N, 3]" in labels(picture)
    assert ["ids", "INT64 [N, 2]"] in boxes(picture)


def test_branches_and_bodies_are_told_and_what_they_take_is_an_arrow(tmp_path):
    picture = drawn(tmp_path, onnx.parser.parse_model(HEADER + BRANCHES)).svg
    found = {box[0]: box[1:] for box in boxes(picture)}
    assert found["If"][-1] == "inside 3: Neg, Exp, Abs"
    assert found["Loop"][-1] == "inside 2: Identity, Add"
    arrows = [path for path in ElementTree.fromstring(picture).iter(f"{SVG}path") if path.get("class") != "trunk"]
    # x to Relu and Loop; c to If and Loop; n to Loop; Relu's result to what is in both; the two results.
    assert len(arrows) == 2 + 2 + 1 + 2 + 2


def test_many_inputs_and_outputs_share_boxes(tmp_path):
    names = [f"past.{number}" for number in range(100)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in names]
    results = [helper.make_tensor_value_info(f"new.{number}", TensorProto.FLOAT, ["N", 4]) for number in range(100)]
    nodes = [helper.make_node("Relu", [one.name], [other.name]) for one, other in zip(values, results, strict=True)]
    graph = helper.make_graph(nodes, "g", values, results)
    made = drawn(tmp_path, helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]))
    assert len(boxes(made.svg)) <= 60
    ends = [box[0] for box in boxes(made.svg) if re.fullmatch(r"\d+ (in|out)puts", box[0])]
    assert ends
    assert counted(made.svg) == 100


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x) => (float[N,4] x) { }",
        "g () => (float[2] w) <float[2] w = {1, 2}> { }",
        "g (float[N,4] x) => (float[N,4] y) { a = Add(x, b) b = Relu(a) y = Neg(b) }",
        "g (float[N,4] x) => (float[N,4] y) { a = Add(x, a) y = ours.Strange(a, nowhere) }",
    ],
    ids=["no node", "no input", "a ring", "unknown operator"],
)
def test_a_graph_that_no_engine_would_take_is_drawn_as_it_is(tmp_path, text):
    header = HEADER.replace('"":17', '"":17, "ours":1')
    picture = drawn(tmp_path, onnx.parser.parse_model(header + text)).svg
    assert counted(picture) == text.count(" = ") - text.count("<float[2] w =")


def test_groups_never_need_one_another():
    """Whatever the order of the nodes and their scopes, the picture's arrows go one way."""
    takers = [[(node + step) for step in (1, 7, 31) if node + step < 400] for node in range(400)]
    scopes = [(f"s{node % 9}",) for node in range(400)]
    groups = folded(takers, scopes, 40)
    assert len(groups) <= 40
    group_of = {node: number for number, (_, members) in enumerate(groups) for node in members}
    assert len(group_of) == 400
    assert all(group_of[node] <= group_of[taker] for node in range(400) for taker in takers[node])


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Iterator[Path]:
    """A picture of names that are long, wide, or what XML has no place for."""
    names = ["x" * 300, "輸入張量" * 30, "<&\"'>\x07]]>", "/very/long/scope" * 20]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 224, 224]) for name in names]
    out = helper.make_tensor_value_info("出" * 40, TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Concat", names, ["c"], name=names[3], axis=0),
        *(helper.make_node("Relu", ["c"], [f"r{number}"], name=f"節點{number}" * 30) for number in range(9)),
        helper.make_node("Sum", [f"r{number}" for number in range(9)], [out.name], name="W" * 90),
    ]
    graph = helper.make_graph(nodes, "g", values, [out])
    folder = tmp_path_factory.mktemp("odd")
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    (folder / "net.svg").write_text(drawn(folder, model).svg)
    return folder / "net.svg"


OUTSIDE = """() => [...document.querySelectorAll('g')].flatMap(group => {
  const box = group.querySelector('rect').getBBox();
  return [...group.querySelectorAll('text')].filter(text => {
    const own = text.getBBox();
    return own.x < box.x || own.x + own.width > box.x + box.width
      || own.y < box.y || own.y + own.height > box.y + box.height;
  }).map(text => text.textContent);
})"""
OVERLAPPING = """() => {
  const frame = document.documentElement.viewBox.baseVal;
  const boxes = [...document.querySelectorAll('rect, svg > text')].map(one => one.getBBox());
  const meet = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
  return boxes.filter((one, n) => one.x < 0 || one.x + one.width > frame.width || one.y + one.height > frame.height
    || boxes.some((other, m) => m > n && meet(one, other))).length;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_no_text_leaves_its_box_and_nothing_covers_another(tmp_path, odd, scheme):
    from playwright.sync_api import sync_playwright

    draw_to = tmp_path / "lines.svg"
    draw_to.write_text(draw(LINES, "lines").svg)
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for picture in (odd, draw_to):
            page = browser.new_page(color_scheme=scheme)
            page.goto(picture.as_uri())
            assert page.evaluate(OUTSIDE) == []
            assert page.evaluate(OVERLAPPING) == 0
            fill = page.evaluate("getComputedStyle(document.querySelector('rect')).fill")
            light = sum(map(int, re.findall(r"\d+", fill)[:3])) > 3 * 128
            assert light is (scheme == "light")
        browser.close()


@pytest.mark.slow
def test_a_converted_model_is_drawn_once_it_was_converted(tmp_path):
    source = tree_models.path("binary.json")
    asked = ("inspect", source, "--graph", tmp_path / "net.svg")
    done = command(tmp_path, *asked)
    assert done.returncode == 2
    assert "Convert it first: triton-unified convert" in done.stderr
    assert not (tmp_path / "net.svg").exists()
    tools = made_models.toolchain_environment("trees")
    made = command(tmp_path, "convert", source, "--out", tmp_path / "out", env=tools)
    assert made.returncode == 0, made.stderr
    assert printed(tmp_path, *asked)["graph"]["nodes"] > 0
    assert "TreeEnsemble" in (tmp_path / "net.svg").read_text()


def test_a_file_that_cannot_be_the_picture_is_refused(tmp_path):
    for out, words in ((tmp_path / "net.png", "what is written is SVG"), (tmp_path / "no" / "net.svg", "cannot be")):
        done = command(tmp_path, "inspect", LINES, "--graph", out)
        assert done.returncode == 2
        assert words in done.stderr


def test_netron_shows_the_file_on_this_host_until_it_is_interrupted(tmp_path):
    with subprocess.Popen(
        [COMMAND, "inspect", LINES, "--netron"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as viewer:
        assert viewer.stdout
        line = viewer.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert url, line
        with urllib.request.urlopen(url[0], timeout=20) as page:
            assert b"netron" in page.read().lower()
        viewer.send_signal(signal.SIGINT)
        assert viewer.wait(30) == 0
        assert viewer.stderr
        assert "Traceback" not in viewer.stderr.read()


def test_without_netron_it_says_how_to_get_it(tmp_path):
    (tmp_path / "netron.py").write_text("raise ImportError('not here')\n")
    done = command(tmp_path, "inspect", LINES, "--netron", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "pip install netron" in done.stderr
