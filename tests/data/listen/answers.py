"""Write basic_pitch.json: the notes that the basic-pitch package itself hears.

In an environment of its own:

    python -m venv build/listen
    build/listen/bin/pip install --no-deps basic-pitch==0.4.0
    build/listen/bin/pip install onnxruntime librosa mir_eval pretty_midi resampy scipy 'numpy<2' 'setuptools<80'
    build/listen/bin/python tests/data/listen/answers.py
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

from basic_pitch import FilenameSuffix, build_icassp_2022_model_path
from basic_pitch.inference import predict

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import synthesised

PACKAGES = ("basic-pitch", "onnxruntime", "librosa")


def main() -> None:
    """Let the package listen to each sound."""
    model = build_icassp_2022_model_path(FilenameSuffix.onnx)
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("scale", "chords"):
            file = Path(folder) / f"{name}.wav"
            file.write_bytes(synthesised.wav(getattr(synthesised, name)()))
            _, _, notes = predict(file, model)
            answers[name] = sorted(
                [round(float(start), 4), round(float(end), 4), int(pitch), round(float(amplitude), 4)]
                for start, end, pitch, amplitude, _ in notes
            )
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    lines = {name: [json.dumps(note) for note in notes] for name, notes in answers.items()}
    written = json.dumps({"made by": versions, "start, end, pitch, amplitude": lines}, indent=1)
    written = written.replace('"[', "[").replace(']"', "]")
    Path(__file__).with_name("basic_pitch.json").write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
