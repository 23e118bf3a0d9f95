"""Models of scikit-learn, LightGBM and XGBoost opened in their libraries: how each is run, and how it is converted."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.errors import ConversionError
from unified_backend.tensors import Array, TensorSpec
from unified_backend.toolchains.workers.messages import first_line

if TYPE_CHECKING:
    import onnx

__all__ = ["OPENERS", "Opened"]

_INPUT = "input"  # in the converters' graphs
_TYPES = {"skl2onnx": "common.data_types", "onnxmltools": "convert.common.data_types"}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model in its library.

    Attributes:
        package: the library, and `distribution` what it is installed as.
        converter: the package that writes ONNX, with `convert` out of it, which writes opsets up to `newest`.
        run: the library's answers to feeds under public names, in the order of the converter's outputs.
    """

    inputs: tuple[TensorSpec, ...]
    model: Any
    package: str
    distribution: str
    converter: str
    convert: Callable[..., Any]
    newest: int
    run: Callable[[Mapping[str, Array]], dict[str, Array]]
    keywords: Mapping[str, Any]
    outputs: tuple[TensorSpec, ...] = ()
    words: tuple[str, ...] = ()

    def exported(self, opsets: Mapping[str, int], options: Mapping[str, Any]) -> onnx.ModelProto:
        """The model as the converter writes it."""
        from onnx import helper

        types = importlib.import_module(f"{self.converter}.{_TYPES[self.converter]}")
        given = [(_INPUT, types.FloatTensorType(list(self.inputs[0].shape or ())))]
        target = dict(opsets) if self.converter == "skl2onnx" else opsets[""]
        keywords = {**self.keywords, **options}
        model: onnx.ModelProto = self.convert(self.model, initial_types=given, target_opset=target, **keywords)
        if "" not in {entry.domain for entry in model.opset_import}:  # nothing of it is used yet
            model.opset_import.append(helper.make_opsetid("", opsets[""]))
        for value in model.graph.output:  # LightGBM's label is said to be one, whatever the number of rows
            value.type.tensor_type.shape.dim[0].dim_param = "rows"
        return model


def _open_sklearn(job: Mapping[str, Any], spec: TensorSpec) -> Opened:
    import skl2onnx
    import skops.io

    def load() -> Any:
        # The file was looked through before; this is what skops itself does not know, of scikit-learn's own.
        named = skops.io.get_untrusted_types(file=job["path"])
        if strange := [name for name in named if not name.startswith("sklearn.")]:
            raise ValueError(f"it names {strange[0]}, which skops does not trust")
        return skops.io.load(job["path"], trusted=named)

    model = _called(load, "scikit-learn")

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = feeds[spec.name]
        if hasattr(model, "classes_"):
            scores = getattr(model, "predict_proba", None) or model.decision_function
            return {"label": _labels(model.predict(rows)), "probabilities": np.asarray(scores(rows), np.float32)}
        if hasattr(model, "cluster_centers_"):
            return {"label": _labels(model.predict(rows)), "scores": np.asarray(model.transform(rows), np.float32)}
        found = np.asarray((getattr(model, "predict", None) or model.transform)(rows), np.float32)
        return {"variable": found.reshape(len(rows), -1)}

    keywords = {"options": {"zipmap": False}} if hasattr(model, "classes_") else {}
    newest = skl2onnx.__max_supported_opset__
    name, convert = "scikit-learn", skl2onnx.convert_sklearn
    return Opened((spec,), model, name, name, "skl2onnx", convert, newest, run, keywords)


def _open_lightgbm(job: Mapping[str, Any], spec: TensorSpec) -> Opened:
    import lightgbm
    from onnxmltools.convert.lightgbm.convert import convert

    model = _called(lambda: lightgbm.Booster(model_file=job["path"]), "LightGBM")

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = np.asarray(model.predict(feeds[spec.name]), np.float32)
        kind = str(model.dump_model()["objective"]).split()[0]
        return _answers(found, kind in ("binary", "multiclass", "multiclassova", "cross_entropy"))

    return Opened((spec,), model, "lightgbm", "lightgbm", "onnxmltools", convert, _newest(), run, {"zipmap": False})


def _open_xgboost(job: Mapping[str, Any], spec: TensorSpec) -> Opened:
    import xgboost
    from onnxmltools.convert.xgboost.convert import convert

    model = _called(lambda: xgboost.Booster(model_file=job["path"]), "XGBoost")

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = np.asarray(model.predict(xgboost.DMatrix(feeds[spec.name])), np.float32)
        return _answers(found, objective.startswith(("binary:logistic", "multi:")))

    objective = str(json.loads(model.save_config())["learner"]["objective"]["name"])
    if objective == "multi:softmax":  # which answers with the class alone
        model.set_param({"objective": "multi:softprob"})
        objective = "multi:softprob"
    return Opened((spec,), model, "xgboost", "xgboost-cpu", "onnxmltools", convert, _newest(), run, {})


OPENERS: dict[str, Callable[[Mapping[str, Any], TensorSpec], Opened]] = {
    "sklearn": _open_sklearn,
    "lightgbm": _open_lightgbm,
    "xgboost": _open_xgboost,
}


def _answers(found: Array, classes: bool) -> dict[str, Array]:
    """What a booster predicts, as the converters write it: of classes a label and all probabilities."""
    if not classes:
        return {"variable": found.reshape(len(found), -1)}
    if found.ndim == 1:
        found = np.stack([1 - found, found], axis=1)
    return {"label": found.argmax(axis=1).astype(np.int64), "probabilities": found}


def _labels(found: Any) -> Array:
    array = np.asarray(found)
    return array.astype(np.int64) if array.dtype.kind in "iub" else array.astype(object)


def _newest() -> int:
    from onnxmltools.convert.common.onnx_ex import get_maximum_opset_supported

    return int(get_maximum_opset_supported())


def _called(load: Callable[[], Any], library: str) -> Any:
    try:
        return load()
    except Exception as error:
        raise ConversionError(
            f"{library} cannot load the model", first_line(error), "Copy it again, or save it again"
        ) from error
