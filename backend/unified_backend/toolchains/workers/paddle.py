"""The worker of the paddle toolchain: runs a Paddle program, and writes it as ONNX."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.errors import ConfigError, ConversionError
from unified_backend.graph.saving import MODEL
from unified_backend.tensors import Array, TensorSpec
from unified_backend.toolchains.workers.answering import answers, write
from unified_backend.toolchains.workers.finishing import finish
from unified_backend.toolchains.workers.messages import first_line

__all__ = ["work"]

_PACKAGES = ("paddlepaddle", "paddle2onnx", "onnx", "onnxsim", "numpy")
_OPTIONS = ("auto_upgrade_opset", "dist_prim_all", "deploy_backend", "calibration_file")
_LEAST, _MOST = 7, 20  # opsets that paddle2onnx 2.1 writes


class Opened:
    """A program in Paddle's own inference engine, without its optimisations.

    Attributes:
        inputs: public names, types and shapes.
        outputs: likewise.
        words: ().
        fetched: names of all outputs in the program.
        names: name of an output in the program -> its public name, of those that are served.
    """

    words: tuple[str, ...] = ()

    def __init__(self, job: Mapping[str, Any], folder: Path) -> None:
        import paddle.inference

        self.files = _named_alike(Path(job["path"]), job["weights"], job["pir"], folder)
        config = paddle.inference.Config(*map(str, self.files))
        config.disable_gpu()
        config.switch_ir_optim(False)
        config.disable_glog_info()
        try:
            self._predictor = paddle.inference.create_predictor(config)
        except Exception as error:
            raise ConversionError(
                "Paddle cannot load the model", first_line(error), "Copy it again, or save it again"
            ) from error
        self.inner = {row["name"]: job["inner"].get(row["name"], row["name"]) for row in job["inputs"]}
        self.inputs = tuple(TensorSpec(row["name"], row["dtype"], tuple(row["shape"])) for row in job["inputs"])
        public = {job["inner"].get(name, name): name for name in job["outputs"]}
        self.fetched = self._predictor.get_output_names()
        self.names = {name: public[name] for name in self.fetched if name in public}
        self.outputs = tuple(TensorSpec(name, "FP32", None) for name in self.names.values())

    @property
    def run(self) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """Paddle's answers to feeds under public names."""
        return self._run

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for name, array in feeds.items():
            self._predictor.get_input_handle(self.inner[name]).copy_from_cpu(np.ascontiguousarray(array))
        self._predictor.run()
        return {
            name: np.array(self._predictor.get_output_handle(inner).copy_to_cpu()) for inner, name in self.names.items()
        }


def work(job: dict[str, Any], folder: Path, tell: Callable[..., None]) -> dict[str, Any]:
    """Run the program on samples, and export it.

    Args:
        job: format, path, inputs, outputs, inner, fixed, samples, opset, converter, weights, pir.
        folder: the only one written to.
        tell: called with each phase's name.

    Returns:
        framework, converter, versions, samples, outputs, model, failure, notes, repairs.

    Raises:
        ConfigError: the converter has no such option, or writes no such opset.
        ConversionError: Paddle does not load the program or runs on no sample, or it changes its answers.
    """
    tell("importing")
    os.environ |= {"POLYGRAPHY_AUTOINSTALL_DEPS": "0", "FLAGS_enable_pir_api": "1" if job["pir"] else "0"}
    import paddle

    _check(job)
    tell("loading")
    opened = Opened(job, folder)
    tell("running")
    found = answers(job, opened)
    if found.unsteady:
        raise ConversionError(
            "the model answers otherwise each time",
            f"{', '.join(found.unsteady)} of two runs on the same input differ: it is random by design",
            "Save the program for inference, without operators that draw random numbers",
        )
    ranks = {name: array.ndim for name, array in found.samples[0].outputs.items()}
    outputs = {inner: TensorSpec(name, "FP32", (None,) * ranks[name]) for inner, name in opened.names.items()}
    tell("converting")
    inputs = {opened.inner[spec.name]: spec for spec in opened.inputs}
    failure, repairs = _exported(opened, inputs, outputs, job, folder)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "framework": f"paddle {paddle.__version__}",
        "converter": f"paddle2onnx {versions['paddle2onnx']}",
        "versions": versions,
        "samples": write(found.samples, folder, ()),
        "outputs": [{"name": spec.name, "dtype": None, "shape": list(spec.shape or ())} for spec in outputs.values()],
        "model": None if failure else MODEL,
        "failure": failure,
        "notes": found.notes,
        "repairs": repairs,
    }


def _named_alike(program: Path, weights: str, pir: bool, folder: Path) -> tuple[Path, Path]:
    """Links to the two files under the names that Paddle tells their formats by."""
    place = folder / "source"
    place.mkdir()
    links = place / f"model.{'json' if pir else 'pdmodel'}", place / "model.pdiparams"
    for link, file in zip(links, (program, program.with_name(weights)), strict=True):
        link.symlink_to(file)
    return links


def _check(job: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: the converter has no such option, or writes no such opset.
    """
    if wrong := sorted(set(job.get("converter", {})) - set(_OPTIONS)):
        raise ConfigError(
            f'parameter "converter" has the option {wrong[0]}',
            "paddle2onnx has none of that name",
            f"paddle2onnx.export takes {', '.join(_OPTIONS)}",
        )
    if not _LEAST <= int(job["opset"]) <= _MOST:
        raise ConfigError(
            f'parameter "opset" is {job["opset"]}', f"paddle2onnx writes {_LEAST} to {_MOST}", "Choose one of these"
        )


def _exported(
    opened: Opened,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    job: Mapping[str, Any],
    folder: Path,
) -> tuple[str, list[str]]:
    """Why there is no model, or ""; and what was repaired in the one that is written."""
    import onnx
    import paddle2onnx

    trial = folder / "trial"
    trial.mkdir()
    try:
        paddle2onnx.export(
            *map(str, opened.files),
            str(trial / MODEL),
            opset_version=int(job["opset"]),
            enable_onnx_checker=True,
            optimize_tool="None",
            **job.get("converter", {}),
        )
        # What Paddle 2 saved is brought to the form of Paddle 3 first, where outputs have other names.
        written = [value.name for value in onnx.load(trial / MODEL, load_external_data=False).graph.output]
        names = dict(zip(opened.fetched, written, strict=True))
        named = {names[inner]: spec for inner, spec in outputs.items()}
        repairs = finish(trial / MODEL, inputs, named, {spec.name: len(spec.shape or ()) for spec in named.values()})
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the converter raises whatever its own code trips over
        return f"paddle2onnx: {type(error).__name__}: {first_line(error)}", []
    for file in trial.iterdir():
        file.replace(folder / file.name)
    return "", repairs
