"""Write rapidocr.json: what the rapidocr-onnxruntime package itself reads on scikit-image's photographs.

In an environment of its own:

    python -m venv build/rapidocr
    build/rapidocr/bin/pip install rapidocr-onnxruntime==1.4.4 scikit-image==0.26.0 'numpy<2'
    build/rapidocr/bin/python tests/data/ocr/answers.py
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import skimage.data
from rapidocr_onnxruntime import RapidOCR

PACKAGES = ("rapidocr-onnxruntime", "onnxruntime", "opencv-python", "pyclipper", "shapely")


def main() -> None:
    """Ask the package about each photograph."""
    page = skimage.data.page()
    photographs = {
        "page": page,
        "upside down": page[::-1, ::-1],
        "standing": np.rot90(page),
        "one line": np.where((np.arange(len(page)) // 30 == 2)[:, None], page, np.uint8(160)),  # rows 60 to 90
        "figures": skimage.data.text(),
        "no text": skimage.data.coffee()[..., ::-1],
    }
    read = RapidOCR()
    answers = {}
    for name, image in photographs.items():
        colour = image if image.ndim == 3 else np.stack([image] * 3, -1)
        lines, _ = read(np.ascontiguousarray(colour))  # an array is taken for blue, green, red
        answers[name] = [{"box": box, "text": text, "score": round(score, 4)} for box, text, score in lines or []]
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    written = json.dumps({"made by": versions, "answers": answers}, indent=1, ensure_ascii=False)
    Path(__file__).with_name("rapidocr.json").write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
