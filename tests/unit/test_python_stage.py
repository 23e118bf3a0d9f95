"""Stages that are Python functions of the user's: what they declare is held to, and what they raise is told."""

from __future__ import annotations

import numpy as np
import pytest
from unified_backend.errors import ConfigError, EngineError, RequestError
from unified_backend.stages.python_function import python_stage

HEAD = "import numpy as np\nfrom unified_backend.stages.user import stage\n"
BEST = '@stage(inputs={"scores": "FP32[-1,3]"}, outputs={"best": "INT64[-1]", "name": "STRING[-1,1]"})\n'


@pytest.fixture
def made(tmp_path):
    def make(body: str, head: str = HEAD):
        path = tmp_path / "best.py"
        path.write_text(head + body)
        return python_stage(path, "net/1")

    return make


def best(body: str) -> str:
    return BEST + "def best(scores):\n    " + body


SCORES = {"scores": np.float32([[1, 5, 2], [9, 0, 1]])}


@pytest.mark.parametrize(
    "answer",
    [
        "return scores.argmax(1), [[f'class {at}'] for at in scores.argmax(1)]",
        "return {'name': np.array([[f'class {at}'] for at in scores.argmax(1)]), 'best': scores.argmax(1), 'more': 1}",
    ],
)
def test_what_it_returns_becomes_the_declared_tensors(made, answer):
    arrays = made(best(answer)).run(SCORES).arrays
    assert arrays["best"].tolist() == [1, 0]
    assert arrays["best"].dtype == np.int64
    assert arrays["name"].tolist() == [["class 1"], ["class 0"]]
    assert arrays["name"].dtype == object


def test_it_may_use_what_its_file_has_beside_it(made):
    body = '@stage({"x": "FP32[-1]"}, {"y": "FP32[-1]"})\ndef twice(x):\n    return double(x)\n'
    body += "def double(x):\n    return 2 * x\n"
    assert made(body).run({"x": np.float32([1, 2])}).arrays["y"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("return scores.argmax(1)", "it returned 1 arrays, and declares 2 outputs"),
        ("return {'best': scores.argmax(1)}", 'it returned no "name"'),
        ("return scores.argmax(), [['a']]", r'"best" has the shape \[\], and is declared as \[-1\]'),
        ("return scores.max(1), [['a']]", '"best" is float32, and declared as INT64'),
        ("return scores.argmax(1), ['a', 'b']", r'"name" has the shape \[2\], and is declared as \[-1, 1\]'),
        ("return [[1], [1, 2]], [['a']]", '"best" is no array'),
        ("raise SystemExit(2)", r"SystemExit: 2 \(best.py:5\)"),
        ("return 1 / 0", r"ZeroDivisionError: division by zero \(best.py:5\)"),
    ],
)
def test_an_answer_that_is_not_as_declared_or_none_is_told(made, answer, why):
    with pytest.raises(EngineError, match=why):
        made(best(answer)).run(SCORES)


def test_a_value_error_is_the_requests_fault(made):
    with pytest.raises(RequestError, match=r"ValueError: scores must be positive \(best.py:5\)") as caught:
        made(best("raise ValueError('scores must be positive')")).run(SCORES)
    assert caught.value.triton_code == "INVALID_ARG"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("def best(scores):\n    return scores\n", "has 0 stages"),
        (best("return scores\n") + BEST + "def other(scores):\n    return scores\n", "has 2 stages: .*best, other"),
        (best("return scores +\n"), r"SyntaxError: .*\(best.py:5\)"),
        ("raise RuntimeError('no')\n", r"RuntimeError: no \(best.py:3\)"),
        ("import a_module_that_is_nowhere\n", "ModuleNotFoundError"),
        ("raise SystemExit(0)\n", r"SystemExit: 0 \(best.py:3\)"),
        ('@stage({"x": "FLOAT[-1]"}, {})\ndef best(x): pass\n', '"x" is "FLOAT'),
    ],
)
def test_a_file_that_is_no_stage_is_refused(made, body, why):
    with pytest.raises(ConfigError, match=why) as caught:
        made(body)
    assert "net/1: best.py" in str(caught.value)


def test_loading_writes_nothing_into_the_repository(made, tmp_path):
    made(best("return scores"))
    assert [path.name for path in tmp_path.iterdir()] == ["best.py"]
