"""Post-processing composed onto graphs, run by ONNX Runtime, against the same thing written in NumPy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from unified_backend import ahead
from unified_backend.cache import Cache
from unified_backend.engines import Canonical, Threads
from unified_backend.engines.openvino import OpenVino
from unified_backend.errors import ConfigError
from unified_backend.loading import describe
from unified_backend.settings import Settings
from unified_backend.stages.expression import parse
from unified_backend.stages.fragments import compose
from unified_backend.tensors import Signature, TensorSpec

NUMBERS = {"FP32": (TensorProto.FLOAT, np.float32), "FP16": (TensorProto.FLOAT16, np.float16)}


class Answers:
    """A model that gives its inputs back, with fragments behind its outputs."""

    def __init__(
        self, shapes: dict[str, Sequence[int | str]], text, dtype="FP32", opset=18, metadata=None, folder=None
    ):
        kind, self._numpy = NUMBERS[dtype]
        graph = helper.make_graph(
            [helper.make_node("Identity", [f"{name}_in"], [name]) for name in shapes],
            "g",
            [helper.make_tensor_value_info(f"{name}_in", kind, shape) for name, shape in shapes.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        helper.set_model_props(model, metadata or {})
        specs = tuple(TensorSpec(name, dtype, tuple(shape)) for name, shape in shapes.items())
        inputs = tuple(TensorSpec(f"{name}_in", dtype, tuple(shape)) for name, shape in shapes.items())
        calls = [call.with_files([folder] if folder else []) for call in parse(text)]
        self.made = compose(model, Signature(inputs, specs), calls, "net/1")
        onnx.checker.check_model(self.made.model, full_check=True)
        assert {node.domain for node in self.made.model.graph.node} <= {"", "ai.onnx"}
        self._session = onnxruntime.InferenceSession(self.made.model.SerializeToString())

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        feeds = {f"{name}_in": np.asarray(array, self._numpy) for name, array in arrays.items()}
        specs = self.made.signature.outputs
        found = dict(zip([spec.name for spec in specs], self._session.run(None, feeds), strict=True))
        for spec in specs:
            assert found[spec.name].dtype == spec.numpy
            assert len(spec.shape) == found[spec.name].ndim
            for size, got in zip(spec.shape, found[spec.name].shape, strict=True):
                assert not isinstance(size, int) or size == got
        return found | {name: rule(found) for name, rule in self.made.labels.items()}


def softmax(x, axis=-1):
    x = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return x / x.sum(axis, keepdims=True)


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_softmax_and_topk(opset, dtype, batch):
    x = np.random.default_rng(0).standard_normal((batch, 10))
    found = Answers({"logits": ["N", 10]}, "softmax | topk(3)", dtype, opset)(logits=x)
    expected = softmax(x.astype(NUMBERS[dtype][1]))
    order = np.argsort(-expected, axis=1, kind="stable")[:, :3]
    assert list(found) == ["scores", "indices"]
    tolerance = 1e-3 if dtype == "FP16" else 1e-6
    np.testing.assert_allclose(found["scores"], np.take_along_axis(expected, order, 1), atol=tolerance)
    if dtype == "FP32":
        np.testing.assert_array_equal(found["indices"], order)


def test_sigmoid_and_argmax_of_other_axes():
    x = np.random.default_rng(1).standard_normal((2, 4, 5, 5))
    mask = Answers({"mask": ["N", 4, "H", "W"]}, "argmax(axis=1)")(mask=x)
    np.testing.assert_array_equal(mask["index"], x.argmax(1)[:, None])
    found = Answers({"mask": ["N", 4, "H", "W"], "other": ["N", 2]}, "sigmoid(of=mask)")(mask=x, other=np.ones((2, 2)))
    np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-x)), atol=1e-6)
    np.testing.assert_array_equal(found["other"], np.ones((2, 2)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "cat\nhorse\ndog\n"),
        ("labels.txt", "\ufeffcat\r\nhorse\r\ndog"),
        ("labels.json", json.dumps(["cat", "horse", "dog"])),
    ],
)
def test_labels_are_looked_up(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode())
    scores = [[1, 5, 2], [9, 0, 1]]
    found = Answers({"scores": ["N", 3]}, f'topk(2, labels="{name}")', folder=tmp_path)(scores=scores)
    assert found["labels"].tolist() == [["horse", "dog"], ["cat", "dog"]]
    found = Answers({"scores": ["N", 3]}, f'argmax(labels="{name}")', folder=tmp_path)(scores=scores)
    assert found["label"].tolist() == [["horse"], ["cat"]]


def overlap(one, others):
    low, high = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return common / (np.prod(one[2:] - one[:2]) + areas - common)


def suppressed(boxes, scores, iou, least, most):
    """(score, class, box) of what stays, for boxes [M, 4] and scores [M, C]; the largest scores first."""
    kept = []
    for kind in range(scores.shape[1]):
        left = [at for at in np.argsort(-scores[:, kind], kind="stable") if scores[at, kind] > least]
        while left:
            first, *left = left
            kept.append((scores[first, kind], kind, first))
            if left:
                apart = overlap(boxes[first], boxes[left]) <= iou
                left = [at for at, keep in zip(left, apart, strict=True) if keep]
    return sorted(kept, key=lambda row: -row[0])[:most]


def random_boxes(seed, batch, number, classes):
    generator = np.random.default_rng(seed)
    corners = generator.random((batch, number, 2)) * 80
    boxes = np.concatenate([corners, corners + 5 + generator.random((batch, number, 2)) * 40], 2)
    return boxes.astype(np.float32), generator.random((batch, number, classes)).astype(np.float32)


def require_detections(found, boxes, scores, iou, least, most):
    for row in range(len(boxes)):
        expected = suppressed(boxes[row], scores[row], iou, least, most)
        count = int(found["count"][row, 0])
        assert count == len(expected)
        np.testing.assert_allclose(found["scores"][row, :count], [one[0] for one in expected], atol=1e-6)
        assert found["classes"][row, :count].tolist() == [one[1] for one in expected]
        np.testing.assert_allclose(
            found["boxes"][row, :count], boxes[row][[one[2] for one in expected]].reshape(-1, 4), rtol=1e-4, atol=1e-4
        )
        for name in ("boxes", "scores"):
            assert not found[name][row, count:].any()
        assert (found["classes"][row, count:] == -1).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.sampled_from([1, 2, 5]),
    number=st.integers(1, 60),
    classes=st.integers(1, 4),
    iou=st.sampled_from([0.2, 0.5, 0.9]),
    least=st.sampled_from([0.0, 0.3, 0.99]),
)
def test_nms_keeps_what_numpy_keeps(seed, batch, number, classes, iou, least):
    boxes, scores = random_boxes(seed, batch, number, classes)
    text = f"nms(boxes=b, scores=s, iou={iou}, score={least}, max=20, scores_last=true)"
    answers = Answers({"b": ["N", number, 4], "s": ["N", number, classes]}, text)
    require_detections(answers(b=boxes, s=scores), boxes, scores, iou, least, 20)


@pytest.mark.parametrize("form", ["yxyx", "cxcywh", "xywh"])
def test_nms_of_boxes_written_otherwise(form):
    boxes, scores = random_boxes(3, 2, 30, 3)
    low, high = boxes[..., :2], boxes[..., 2:]
    written = {
        "yxyx": boxes[..., [1, 0, 3, 2]],
        "cxcywh": np.concatenate([(low + high) / 2, high - low], 2),
        "xywh": np.concatenate([low, high - low], 2),
    }[form]
    text = f"nms(boxes=b, scores=s, format={form}, scores_last=false)"
    answers = Answers({"b": ["N", "M", 4], "s": ["N", 3, "M"]}, text)
    require_detections(answers(b=written, s=scores.transpose(0, 2, 1)), boxes, scores, 0.5, 0.25, 100)


def test_nms_across_classes_gives_a_box_its_best_class_only():
    boxes = np.float32([[[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]]])
    scores = np.float32([[[0.9, 0.8], [0.1, 0.95], [0.5, 0.3]]])
    found = Answers({"b": ["N", 3, 4], "s": ["N", 3, 2]}, "nms(boxes=b, scores=s, per_class=false, max=5)")(
        b=boxes, s=scores
    )
    assert found["count"].tolist() == [[2]]
    assert found["classes"][0, :2].tolist() == [1, 0]
    np.testing.assert_allclose(found["scores"][0, :2], [0.95, 0.5])


@pytest.mark.parametrize("version", [8, 5])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_yolo_heads(version, dtype):
    boxes, scores = random_boxes(4, 2, 40, 3)
    boxes, scores = boxes.round(), (scores * 64).round() / 64  # exact in FP16 too
    centred = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], 2)
    if version == 8:
        head = np.concatenate([centred, scores], 2).transpose(0, 2, 1)
        shape = ["N", 7, "M"]
    else:
        head = np.concatenate([centred, np.full((2, 40, 1), 0.5), scores], 2)
        scores = scores / 2
        shape = ["N", "M", 8]
    found = Answers({"head": shape}, f"yolo({version}, score=0.2, max=30, multi_label=true)", dtype)(head=head)
    require_detections(found, boxes, scores, 0.5, 0.2, 30)


def test_ssd_decodes_anchors(tmp_path):
    boxes, scores = random_boxes(5, 2, 25, 3)
    boxes = boxes / 128
    anchors = np.random.default_rng(6).random((25, 4)).astype(np.float32) + 0.1
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    given = np.concatenate([(centre - anchors[:, :2]) / anchors[:, 2:] / 0.1, np.log(size / anchors[:, 2:]) / 0.2], 2)
    np.save(tmp_path / "anchors.npy", anchors)
    text = "ssd(anchors.npy, boxes=b, scores=s, background=0)"
    with_background = np.concatenate([np.ones((2, 25, 1)), scores], 2)
    answers = Answers({"b": ["N", 25, 4], "s": ["N", 25, 4]}, text, folder=tmp_path)
    require_detections(answers(b=given, s=with_background), boxes, scores, 0.5, 0.25, 100)


def decoded(row, blank=0):
    """(indices, mean of the largest values) of one sample's steps, by the definition."""
    best = row.argmax(1)
    kept = [at for at, one in enumerate(best) if one != blank and (at == 0 or best[at - 1] != one)]
    return best[kept].tolist(), float(np.mean([row[at].max() for at in kept])) if kept else 0.0


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12), st.just(4)), elements=st.floats(0, 1, width=16)
    )
)
def test_ctc_is_what_its_definition_says(x):
    found = Answers({"steps": ["N", "T", 4]}, "ctc_greedy")(steps=x)
    for row in range(len(x)):
        indices, confidence = decoded(x[row])
        assert found["lengths"][row, 0] == len(indices)
        assert found["indices"][row].tolist() == indices + [-1] * (x.shape[1] - len(indices))
        np.testing.assert_allclose(found["confidence"][row, 0], confidence, atol=1e-6)


def test_ctc_reads_text_by_a_charset(tmp_path):
    (tmp_path / "letters.txt").write_text("h\ni\n")
    steps = np.eye(4)[[[0, 1, 1, 0, 2, 3, 1], [0, 0, 0, 0, 0, 0, 0]]]
    by_file = Answers({"steps": ["N", "T", 4]}, "ctc_greedy(letters.txt)", folder=tmp_path)(steps=steps)
    assert by_file["text"].tolist() == [["hi h"], [""]]
    metadata = {"character": "h\ni\n \n"}
    by_model = Answers({"steps": ["N", "T", 4]}, 'ctc_greedy("metadata:character")', metadata=metadata)(steps=steps)
    assert by_model["text"].tolist() == [["hi h"], [""]]


@pytest.mark.parametrize(
    ("shapes", "text", "why"),
    [
        ({"y": ["N", 3]}, "softmx", "there are softmax.*Did you mean softmax"),
        ({"y": ["N", 3]}, "topk(5)", "k is 5, and y has 3 classes"),
        ({"y": ["N", 3]}, "topk(0)", "k is 0. Write a whole number of 1 or more"),
        ({"y": ["N", 3]}, "topk(2, lables=x)", "it has no option lables. Did you mean labels"),
        ({"y": ["N", 3]}, "topk(2, labels=nowhere.txt)", "labels is nowhere.txt, and there is no such file"),
        ({"y": ["N", 3]}, "topk(1, k=2)", "k is given twice"),
        ({"y": ["N", 3]}, "softmax(2)", "axis is 2"),
        ({"y": ["N", 3]}, "softmax(of=z)", "of is z; the model gives y"),
        ({"y": ["N", 3], "z": ["N", 3]}, "softmax", 'not said which output of is; the model gives y, z. Write of="y"'),
        ({"y": ["N", 3]}, "ctc_greedy", r"Steps of classes have the shape \[N, T, C\]"),
        ({"y": ["N", 5, 3]}, "ctc_greedy(blank=3)", "blank is 3, and there are 3 classes"),
        ({"y": ["N", 5, 3]}, 'ctc_greedy("metadata:character")', "the model has no metadata character"),
        ({"y": ["N", 5]}, "yolo", r"The head has \[N, 4 \+ C, M\]"),
        ({"y": ["N", 4, 9]}, "yolo(8)", "Version 8 has 4 values before the classes"),
        ({"y": ["N", 4, 9]}, "yolo(7)", "version is 7. Write one of 5, 8"),
        ({"b": ["N", 9, 4], "s": ["N", 9]}, "nms(boxes=b, scores=s)", r"Name boxes \[N, M, 4\]"),
        (
            {"b": ["N", 9, 4], "s": ["N", 9, 2]},
            "nms(boxes=b, scores=s, iou=1.5)",
            "iou is 1.5. Write a number from 0 to 1",
        ),
        ({"b": ["N", 9, 4], "s": ["N", 9, 2]}, "ssd(boxes=b, scores=s)", "anchors is not given"),
    ],
)
def test_what_does_not_fit_is_named(shapes, text, why):
    with pytest.raises(ConfigError, match=why) as caught:
        Answers(shapes, text)
    assert 'parameter "postprocess"' in str(caught.value)


def test_labels_that_are_too_few(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(ConfigError, match=r"labels.txt has 2 labels, and the model 3 classes"):
        Answers({"y": ["N", 3]}, "topk(2, labels=labels.txt)", folder=tmp_path)


def test_names_of_the_graph_are_not_taken_twice():
    found = Answers({"scores": ["N", 3], "indices": ["N", 2]}, "topk(2, of=scores)")(
        scores=[[1, 5, 2]], indices=[[7, 8]]
    )
    assert found["indices"].tolist() == [[7, 8]]
    assert {name: array.tolist() for name, array in found.items() if name != "indices"} == {
        "scores_1": [[5, 2]],
        "indices_1": [[1, 2]],
    }


def of_best_class(scores):
    """The scores without those of other classes than a box's best."""
    return np.where(np.arange(scores.shape[-1]) == scores.argmax(-1)[..., None], scores, -1)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("opset", [11, 13, 18, 21])
def test_yolo_gives_a_box_its_best_class_and_leaves_out_what_follows_the_classes(batch, opset):
    boxes, scores = random_boxes(batch, batch, 40, 3)
    centred = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], 2)
    masks = np.ones((batch, 40, 32))
    head = np.concatenate([centred, scores, masks], 2).transpose(0, 2, 1)
    found = Answers({"head": ["N", 39, 40]}, "yolo(8, classes=3, max=30)", opset=opset)(head=head)
    require_detections(found, boxes, of_best_class(scores), 0.5, 0.25, 30)


def test_coordinates_of_half_precision_are_computed_in_single():
    """FP16 has steps of 1 from 1024 on."""
    head = np.float16([[[1100], [1201], [1], [3], [0.75]]])
    found = Answers({"head": ["N", 5, 1]}, "yolo(8, max=1)", "FP16")(head=head)
    assert found["boxes"].tolist() == [[[1099.5, 1199.5, 1100.5, 1202.5]]]


def test_nothing_has_no_label(tmp_path):
    (tmp_path / "names.txt").write_text("cat\n\u2028\n")
    boxes, scores = random_boxes(1, 2, 6, 2)
    scores[0] = 0
    text = "nms(boxes=b, scores=s, max=3, labels=names.txt, scores_last=true)"
    found = Answers({"b": ["N", 6, 4], "s": ["N", 6, 2]}, text, folder=tmp_path)(b=boxes, s=scores)
    assert found["count"][0] == 0
    assert found["labels"][0].tolist() == ["", "", ""]
    names = np.array(["cat", "\u2028", ""], object)
    assert found["labels"][1].tolist() == names[found["classes"][1]].tolist()


def test_topk_of_another_axis_and_of_scores_from_a_bound_on(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\nd")
    text = "topk(3, names.txt, axis=1, score=0.2)"
    for dtype in NUMBERS:
        answers = Answers({"y": ["N", 4, 1, 1]}, text, dtype, folder=tmp_path)
        found = answers(y=np.reshape([[0.25, 0.125, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]], (2, 4, 1, 1)))
        assert found["scores"].shape == (2, 3, 1, 1)
        assert found["indices"][..., 0, 0].tolist() == [[2, 0, -1], [3, -1, -1]]
        assert found["scores"][..., 0, 0].tolist() == [[0.5, 0.25, 0], [1, 0, 0]]
        assert found["labels"][..., 0, 0].tolist() == [["c", "a", ""], ["d", "", ""]]


SCALER = "ai.onnx.ml.Scaler<offset=[0.0], scale=[-1.0]>"
FLOAT4 = "(float[N,4] x) => (float[N,4] y)"
INNER = (
    "g (float[N,4] x, bool c) => (float[N,4] y) { y = If (c) <then_branch = t () => (float[N,4] scores) "
    "{ scores = Neg(x) }, else_branch = e () => (float[N,4] indices) { indices = Identity(x) }> }"
)


@pytest.mark.parametrize(
    "written",
    [
        f'<ir_version: 8, opset_import: ["":17]> {INNER}',
        f'<ir_version: 3, opset_import: ["":9]> g {FLOAT4} {{ y = Neg(x) }}',
        f'<ir_version: 8, opset_import: ["ai.onnx.ml":3]> g {FLOAT4} {{ y = {SCALER}(x) }}',
    ],
    ids=["names-in-a-branch", "ir-version-3", "no-default-domain"],
)
def test_unusual_models_are_composed_too(written):
    model = onnx.parser.parse_model(written)
    y = TensorSpec("y", "FP32", ("N", 4))
    made = compose(model, Signature((), (y,)), parse("topk(2)"), "net/1")
    onnx.checker.check_model(made.model, full_check=True)
    session = onnxruntime.InferenceSession(made.model.SerializeToString())
    feeds = {"x": np.float32([[1, 2, 3, 4]])} | ({"c": np.array(True)} if len(session.get_inputs()) > 1 else {})
    scores, indices = session.run(None, feeds)
    assert scores.tolist() == [[-1, -2]]
    assert indices.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("softmax | topk(3)", {"y": ["N", 7]}),
        ("nms(boxes=b, scores=s, max=9, scores_last=true)", {"b": ["N", 12, 4], "s": ["N", 12, 3]}),
        ("nms(boxes=b, scores=s, per_class=false, scores_last=true)", {"b": ["N", 12, 4], "s": ["N", 12, 3]}),
        ("yolo(8, max=20)", {"head": ["N", 7, 30]}),
        ("ctc_greedy", {"y": ["N", 11, 3]}),
    ],
)
def test_openvino_gives_the_same(tmp_path, text, shapes):
    answers = Answers(shapes, text)
    onnx.save(answers.made.model, tmp_path / "model.onnx")
    canonical = Canonical("net/1", tmp_path / "model.onnx", "", answers.made.signature)
    runner = OpenVino().load(canonical, None, Settings(), Threads(1))
    names = [spec.name for spec in answers.made.signature.outputs]
    boxes, scores = random_boxes(0, 2, 12, 3)
    random = np.random.default_rng(1)
    given_all = {
        "b": boxes,
        "s": scores,
        **{name: random.random((2, *shapes[name][1:])) for name in shapes.keys() - "bs"},
    }
    for scale in (1,) if "topk" in text else (1, 0):  # with 0 nothing stays; of equal scores its TopK takes any
        arrays = {name: (given_all[name] * scale).astype(np.float32) for name in shapes}
        wanted = answers(**arrays)
        made = runner.run({f"{name}_in": array for name, array in arrays.items()}, names)
        for name, array in zip(names, made, strict=True):
            assert array.dtype == wanted[name].dtype
            np.testing.assert_allclose(array, wanted[name], atol=1e-5, err_msg=name)


def test_a_corrected_label_needs_no_other_engine_and_other_anchors_do(tmp_path):
    """Models [N, 3] -> [N, 3], and [N, 2, 4], [N, 2, 3] for anchors."""
    folder = tmp_path / "models" / "net" / "1"
    folder.mkdir(parents=True)
    with Cache(tmp_path / "cache") as cache:

        def described(model: str, postprocess: str, **files: Sequence[str]):
            onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["":17]> g {model}'), folder / "net.onnx")
            for name, lines in files.items():
                (folder / f"{name}.txt").write_text("\n".join(lines))
            return describe("net/1", folder, {"parameters": {"postprocess": {"string_value": postprocess}}}, cache)

        same = "(float[N,3] x) => (float[N,3] y) { y = Neg (x) }"
        for call in ("topk(1, names.txt)", "topk(1, labels=names.txt)", "argmax(labels=names.txt)"):
            first = described(same, call, names=["cat", "dgo", "horse"])
            assert first.report.lookups["composed"] == "made"
            second = described(same, call, names=["cat", "dog", "horse"])
            assert second.report.lookups["composed"] == "hit"
            assert second.canonical.digest == first.canonical.digest
            [rule] = second.lookups.values()
            assert rule({rule.sources[0]: np.array([[1]])}).tolist() == [["dog"]]
            with pytest.raises(ConfigError, match=r"names\.txt has 2 labels, and the model 3 classes"):
                described(same, call, names=["cat", "dog"])
        read = "(float[N,T,4] x) => (float[N,T,4] y) { y = Neg (x) }"
        described(read, "ctc_greedy(names.txt)", names="abc")
        [rule] = (other := described(read, "ctc_greedy(names.txt)", names="abd")).lookups.values()
        assert other.report.lookups["composed"] == "hit"
        assert rule({"indices": np.array([[1, 3, -1]])}).tolist() == [["ad"]]
        with pytest.raises(ConfigError, match="the charset has 4 characters, and the model 3 beside the blank"):
            described(read, "ctc_greedy(names.txt)", names="abcd")
        two = "(float[N,2,4] x, float[N,2,3] z) => (float[N,2,4] b, float[N,2,3] s) { b = Neg (x) s = Neg (z) }"
        for size in (1, 2):
            np.save(folder / "anchors.npy", np.full((2, 4), size, np.float32))
            lookups = described(two, "ssd(anchors.npy, boxes=b, scores=s)").report.lookups
            assert lookups["composed"] == "made"


CLASSIFIER = Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"
RECOGNISER = Path(__file__).resolve().parents[2] / "model_repository" / "ocr_recognition" / "1" / "model.onnx"


@pytest.mark.parametrize(
    ("path", "text"),
    [(CLASSIFIER, "softmax(axis=1) | topk(5, axis=1)"), (RECOGNISER, 'ctc_greedy(charset="metadata:character")')],
    ids=["topk", "ctc_greedy"],
)
def test_tensorrt_rtx_builds_it_behind_a_real_model(tmp_path, path, text):
    """For a GPU that is not here."""
    model = onnx.load(path)
    session = onnxruntime.InferenceSession(str(path))
    (y,) = session.get_outputs()
    made = compose(model, Signature((), (TensorSpec(y.name, "FP32", tuple(y.shape)),)), parse(text), "net/1")
    folder = tmp_path / "models" / "net" / "1"
    folder.mkdir(parents=True)
    onnx.save(made.model, folder / "model.onnx")
    with Cache(tmp_path / "cache") as cache:
        target = ahead.target("sm89")
        assert target is not None
        ahead.build_ahead(describe("net/1", folder, {}, cache, gpu=target), cache)
        (plan,) = cache.store.root.glob("entries/**/model.plan")
        assert plan.stat().st_size > 50_000
