"""Which parameters of a config mean something for a format."""

from __future__ import annotations

from unified_backend.errors import ConfigError
from unified_backend.settings import Settings

__all__ = ["refuse_unused"]

_TORCHSCRIPT = ("method", "arguments", "stateful")
_DALI = ("num_threads", "split_along_outer_axis")
_LOWERING = ("exclude", "calibration")
_ALL = ("signature", "tags", "inputs", "outputs", "names", "opset", "converter")
_OF_CONVERSIONS = ("signature", "tags", "opset", "converter")
# format -> those of them that it has not got, and why.
_UNUSED = {
    "onnx": (_ALL, "the model is ONNX already, and is served as it is"),
    "graphdef": (("signature", "tags"), "a GraphDef has neither signatures nor tags"),
    "checkpoint": (("signature", "tags"), "a TensorFlow 1 checkpoint's graph has neither signatures nor tags"),
    "keras": (("signature", "tags", "outputs"), "a Keras model is served with all of its outputs"),
    "keras-hdf5": (("signature", "tags", "outputs"), "a Keras model is served with all of its outputs"),
    "torchscript": (("signature", "tags", "outputs"), "a TorchScript module is served with all of a method's outputs"),
    "torch-export": (("tags", "outputs"), "an exported program is served with all of its outputs"),
    "sklearn": (("signature", "tags", "inputs", "outputs"), "an estimator is served with all of its outputs"),
    "lightgbm": (("signature", "tags", "inputs", "outputs"), "a booster is served with all of its outputs"),
    "xgboost": (("signature", "tags", "inputs", "outputs"), "a booster is served with all of its outputs"),
    "paddle": (("signature", "tags"), "a Paddle program has neither signatures nor tags"),
    "mxnet": (("signature", "tags", "outputs"), "an MXNet graph is served with all of its outputs"),
    "tflite": (("tags",), "a TensorFlow Lite file has no tags"),
    "openvino": (_OF_CONVERSIONS, "an OpenVINO model is served as it is"),
    "ncnn": (_OF_CONVERSIONS, "an ncnn model is served as it is"),
    "plan": ((*_ALL, *_TORCHSCRIPT), "a TensorRT plan is served as it is"),
    "plan-rtx": ((*_ALL, *_TORCHSCRIPT), "a TensorRT-RTX plan is served as it is"),
    "dali": ((*_OF_CONVERSIONS, "inputs", "outputs"), "a DALI pipeline is served as it is"),
    "mnn": (_OF_CONVERSIONS, "an MNN file is served as it is"),
}


def refuse_unused(form: str, settings: Settings, label: str) -> None:
    """Refuse what was set and would be ignored: whoever wrote it expects another model than would be served.

    Args:
        form: a key of `formats.FORMATS`.

    Raises:
        ConfigError: a parameter that the format has not got.
    """
    unused, why = _UNUSED.get(form, ((), ""))
    if form != "torchscript" and (given := [name for name in _TORCHSCRIPT if getattr(settings, name)]):
        raise ConfigError(f'{label}: parameter "{given[0]}" is set', "only a TorchScript module has it", "Remove it")
    if form != "dali" and (given := [name for name in _DALI if getattr(settings, name)]):
        raise ConfigError(f'{label}: parameter "{given[0]}" is set', "only a DALI pipeline has it", "Remove it")
    if not settings.lowers and (given := [name for name in _LOWERING if getattr(settings, name)]):
        why = "it is for a precision below FP32, and the parameter `precision` sets none"
        raise ConfigError(f'{label}: parameter "{given[0]}" is set', why, "Set `precision`, or remove it")
    if given := [name for name in unused if getattr(settings, name)]:
        raise ConfigError(f'{label}: parameter "{given[0]}" is set', why, "Remove it")
