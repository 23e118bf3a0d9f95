"""Put the real models of model_repository/ in place, from the packages that carry them; quick when they are there."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
# Package, file in it, place in the repository. Licences: PP-OCR and magika are Apache-2.0.
MODELS = (
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", "ocr_detection.unified/1/PP-OCRv4_det"),
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", "ocr_recognition/1/model.onnx"),
    ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "ocr_direction/1/model.onnx"),
    ("magika", "models/standard_v3_3/model.onnx", "file_type.unified/1/magika"),
    ("magika", "models/standard_v3_3/config.min.json", "file_type.unified/labels.json"),
)


def main() -> None:
    """Copy what is missing or older than its package."""
    for package, inside, place in MODELS:
        # find_spec does not import the package, whose own dependencies are not installed.
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"fetch_models: the package {package} is not installed. Run `make setup`.")
        source = Path(spec.submodule_search_locations[0]) / inside
        target = REPOSITORY / place
        if target.exists() and target.stat().st_size == source.stat().st_size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(f"fetch_models: {target.relative_to(REPOSITORY)} ({source.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
