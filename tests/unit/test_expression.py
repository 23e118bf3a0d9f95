"""The language of `preprocess` and `postprocess`."""

from __future__ import annotations

import pytest
from unified_backend.stages.expression import Call, parse


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("softmax", [Call("softmax")]),
        ("softmax | topk(5, labels.txt)", [Call("softmax"), Call("topk", (5, "labels.txt"))]),
        (" keras-tf ", [Call("keras-tf")]),
        (
            'image(size=(224, 256), crop=center, mean=[0.5, -1, 2], antialias=True, labels="my file.txt", scale=None)',
            [
                Call(
                    "image",
                    (),
                    {
                        "size": (224, 256),
                        "crop": "center",
                        "mean": (0.5, -1, 2),
                        "antialias": True,
                        "labels": "my file.txt",
                        "scale": None,
                    },
                )
            ],
        ),
        ("a | b() | c(1)", [Call("a"), Call("b"), Call("c", (1,))]),
    ],
)
def test_what_is_written_is_what_is_read(text, calls):
    assert list(parse(text)) == calls


@pytest.mark.parametrize(
    "text",
    ["", "softmax |", "softmax(", "a; b", "topk(5)(6)", "f(**x)", "__import__('os').system('x')", "f(x[0])", "3"],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match="it must be stages such as"):
        parse(text)


def test_files_are_those_of_the_folders_and_no_others(tmp_path):
    (tmp_path / "labels.txt").write_text("a")
    (tmp_path / "inner").mkdir()
    [call] = parse('topk(5, labels.txt, more="../labels.txt", last="/etc/passwd", of=scores)')
    found = call.with_files([tmp_path / "inner", tmp_path])
    assert found.arguments == (5, tmp_path / "labels.txt")
    assert found.options == {"more": "../labels.txt", "last": "/etc/passwd", "of": "scores"}
