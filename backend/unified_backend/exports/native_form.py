"""One model version in a form that a native backend of Triton's takes: the very files that a load verified.

`python -m unified_backend.exports.native_form MODEL_DIR VERSION FOLDER` loads the version and writes them into the
folder; see `processes`.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.building import config_to_build, require_kept
from unified_backend.cache import Cache
from unified_backend.cache.files import sha256_of
from unified_backend.cache.manifest import DamagedError
from unified_backend.engines.reference import open_reference
from unified_backend.engines.tensorrt_build import PLAN
from unified_backend.errors import CacheError, ConversionError, SourceError, UnifiedError
from unified_backend.exports.native_config import level, native_config
from unified_backend.formats import Source, find_source
from unified_backend.formats.onnx import files_as
from unified_backend.formats.plan import header_of
from unified_backend.forms.reference import ENGINES
from unified_backend.gpus import gpu_of
from unified_backend.loading import Described, Loaded, describe, load, open_cache
from unified_backend.model_keys import engine_key
from unified_backend.pbtxt import gives_max_batch_size
from unified_backend.processes import Target, answer
from unified_backend.repository import chosen_filename, parameters, version_folder
from unified_backend.tensors import Signature
from unified_backend.toolchains.catalogue import toolchain_for

__all__ = ["FILES", "Form", "form_of", "proven"]

FILES = {"onnxruntime": "model.onnx", "tensorrt": PLAN, "openvino": "model.xml"}  # backend -> the file that it opens
_AS_THEY_ARE = ("onnx", "openvino", "plan")  # formats that a native backend takes
_LEVELS = {2: "ORT_DISABLE_ALL", -1: "ORT_ENABLE_BASIC", 1: "ORT_ENABLE_EXTENDED", 0: "ORT_ENABLE_ALL"}


@dataclasses.dataclass(frozen=True)
class Form:
    """What a loaded model is exported as.

    Attributes:
        files: name in the version's folder -> file; the first is the one that the backend opens.
        notes: what a person should know of the choice.
    """

    backend: str
    files: Mapping[str, Path]
    notes: tuple[str, ...] = ()


def form_of(loaded: Loaded, cache: Cache) -> Form:
    """The form of a loaded model: TensorRT's plan or OpenVINO's IR where a load serves these, else the ONNX model."""
    described, canonical = loaded.described, loaded.described.canonical
    if loaded.engine == "tensorrt" and not (stripped := described.settings.tensorrt.strip_plan):
        path = canonical.path
        if canonical.format == "onnx":
            key = engine_key(canonical.digest, ENGINES["tensorrt"], described.settings)
            path = cache.store.place(key) / PLAN
        gpu = described.settings.gpu
        runs_on = f"TensorRT {header_of(path).version}".rstrip() + (f" on {gpu.name}" if gpu else "")
        return Form("tensorrt", {PLAN: path}, (f"the plan runs with {runs_on} alone",))
    if canonical.format == "openvino":
        return Form("openvino", {"model.xml": canonical.path, **_weights(canonical.path)})
    notes = []
    if loaded.engine == "tensorrt_rtx":
        notes.append(
            "as ONNX: TensorRT-RTX's engines are of another format than the plans of Triton's TensorRT backend"
        )
    elif loaded.engine == "tensorrt" and stripped:
        notes.append("as ONNX: the plan has no weights in it (strip_plan)")
    elif loaded.engine not in ("onnxruntime", "onnxruntime_cuda"):
        notes.append(f"as ONNX: it is served by {loaded.engine} here")
    return Form("onnxruntime", files_as(canonical.path, FILES["onnxruntime"]), tuple(notes))


def proven(path: Path, described: Described, cache: Cache) -> tuple[str, str]:
    """SHA-256 of the bytes that a load verified as this file, and the key of the entry that has it, both in hex.

    Raises:
        CacheError: no entry has it.
    """
    entries = cache.store.root / "entries"
    inside = path.is_relative_to(entries)
    digest = path.relative_to(entries).parts[2] if inside else described.canonical.digest
    place = next((place for place in cache.store.places() if place.name == digest), None)
    what = f"{described.source.label}: {path.name} cannot be told to be what was verified"
    again = "Run `triton-unified cache verify --repair`, and export again"
    if place is None:
        raise CacheError(what, f"the entry {digest[:12]} is not in the cache {cache.root}", again)
    try:
        manifest = cache.store.check(place, cache.store.memo.digest)
    except (DamagedError, OSError) as error:
        raise CacheError(what, f"the entry {digest[:12]} is damaged: {error}", again) from None
    if inside:
        return manifest.files[path.relative_to(place).as_posix()].sha256, digest
    # The model is the source itself: the entry's key has the digests of its files.
    known = dict(zip(described.source.files, described.snapshot.digests, strict=True))
    if known[path] not in manifest.key.fields["files"]:
        raise CacheError(what, f"the entry {digest[:12]} is of other bytes", again)
    return known[path], digest


def _weights(xml: Path) -> dict[str, Path]:
    weights = xml.with_suffix(".bin")
    return {"model.bin": weights} if weights.is_file() else {}


def _require_backend(source: Source) -> None:
    """
    Raises:
        ConversionError: no native backend takes the source, and nothing converts it to ONNX.
    """
    if source.format in _AS_THEY_ARE or toolchain_for(source.format):
        return
    do = "Give the ONNX model that it was made of, or leave it with this backend"
    why = f"no native backend of Triton's takes {source.format}, and nothing converts it to ONNX"
    if source.format == "dali":
        why = "it is a DALI pipeline, which is for Triton's DALI backend"
        do = 'Write `backend: "dali"` in its config, and it is copied as it is'
    if source.format == "plan-rtx":
        why = "Triton's TensorRT backend takes TensorRT's plans, and TensorRT-RTX's are of another format"
    raise ConversionError(f"{source.label}: the model cannot be exported", why, do)


def _exported(target: Target, folder: Path) -> dict[str, Any]:
    """Load the version, and write its files into the folder; what a report says of it."""
    label, version = version_folder(target.model_dir, target.version)
    try:
        with open_cache() as cache:
            loaded, converted = _loaded(label, version, target.model_dir, cache)
            loaded.runner.close()
            form = form_of(loaded, cache)
            require_kept(label, cache, loaded.described.report.entries)
            files = [_copied(name, path, folder, loaded.described, cache) for name, path in form.files.items()]
            config, notes = _config(loaded.described, form, folder)
    except UnifiedError as error:
        return {"failure": str(error)}
    except OSError as error:
        return {"failure": f"{label}: the files cannot be written to {folder}: {error.strerror or error}. Make room."}
    return {
        "backend": form.backend,
        "engine": loaded.engine,
        "files": files,
        "config": config,
        "notes": [*converted, *form.notes, *notes],
    }


def _loaded(label: str, version: Path, model_dir: Path, cache: Cache) -> tuple[Loaded, list[str]]:
    """The model as a load makes it; converted, where it is served by an engine that no native backend has.

    Raises:
        ConversionError: no native backend takes it, or it has stages around its engine, which none runs.
        UnifiedError: it does not load.
    """
    config = config_to_build(label, model_dir)
    chosen = parameters(config).get("source") or chosen_filename(config)
    _require_backend(find_source(label, version, cache.store.memo, chosen))
    given, gpu = gives_max_batch_size(model_dir / "config.pbtxt"), gpu_of(config)
    described = describe(label, version, config, cache, given, gpu)
    _require_no_stage(described)
    if described.canonical.format in _AS_THEY_ARE:
        return load(described, cache), []
    served = described.canonical.judged_by
    config["parameters"] = {**(config.get("parameters") or {}), "engine": {"string_value": "onnxruntime"}}
    described = describe(label, version, config, cache, given, gpu)
    return load(described, cache), [f"converted to ONNX: as it is, it is served by {served}"]


def _require_no_stage(described: Described) -> None:
    """
    Raises:
        ConversionError: a stage that is DALI's or Python is before the engine or after it.
    """
    around = described.around
    stages = [str(stage.name) for stage in (around.before, around.after) if stage is not None]
    if stages:
        raise ConversionError(
            f"{described.source.label}: the model cannot be exported with its stage {' and '.join(stages)}",
            "it runs in DALI or in Python, and a native backend has the network alone",
            "Make it a step of a pipeline: `ensemble build` writes it as a model of its own; or take it out of the "
            "config and send the network what it takes",
        )


def _copied(name: str, path: Path, folder: Path, described: Described, cache: Cache) -> dict[str, Any]:
    """Copy a file, and see that the copy has the bytes that were verified.

    Raises:
        CacheError: it has not.
    """
    expected, entry = proven(path, described, cache)
    copy = folder / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)
    if (found := sha256_of(copy)) != expected:
        raise CacheError(
            f"{described.source.label}: {name} is not what was verified",
            f"its SHA-256 is {found[:12]}..., and that of the verified file {expected[:12]}...",
            "Export again once nobody writes to the model",
        )
    return {"name": name, "size": copy.stat().st_size, "sha256": found, "entry": entry}


def _config(described: Described, form: Form, folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    signature, notes = described.canonical.signature, list[str]()
    if form.backend == "onnxruntime":
        signature, notes = _as_opened(described, folder / FILES["onnxruntime"])
    elif described.canonical.inner:
        served = ", ".join(described.canonical.inner)
        raise ConversionError(
            f"{described.source.label}: the model cannot be exported under the names that it is served by",
            f"the file has others for {served}",
            "Take the parameter `names` out",
        )
    config, more = native_config(
        described.source.label,
        form.backend,
        described.config,
        parameters(described.config),
        described.settings,
        signature,
    )
    return config, [*notes, *more]


def _as_opened(described: Described, path: Path) -> tuple[Signature, list[str]]:
    """Inputs and outputs as ONNX Runtime reads them with the options that the native backend gives it.

    The optimiser may know sizes that the file leaves open, and the native backend compares with what it knows.
    """
    try:
        runner, _ = open_reference(described.source.label, path, described.settings, _LEVELS[level(described.settings)])
    except SourceError as error:
        if described.canonical.judge is None:
            raise
        return described.canonical.signature, [f"not opened here, and on no CPU: {error.why}"]
    signature = runner.signature
    runner.close()
    return signature, []


def _main(model_dir: str, version: str, folder: str) -> None:
    answer(lambda: _exported(Target(Path(model_dir), int(version)), Path(folder)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
