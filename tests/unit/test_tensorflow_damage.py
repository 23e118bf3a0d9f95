"""Damaged TensorFlow files that look sound until their framework reads them: the file is named, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import made_models
import pytest
import tensorflow_models
from unified_backend.conversion.convert import convert, job_of
from unified_backend.errors import ConversionError
from unified_backend.formats import FORMATS, Source
from unified_backend.settings import Settings
from unified_backend.toolchains.catalogue import TOOLCHAINS

pytestmark = pytest.mark.slow

AGAIN = "Copy it again completely, or save the model again"
DATA = "data-00000-of-00001"


def flipped(content: bytes) -> bytes:
    """One byte in the middle is another."""
    middle = len(content) * 6 // 10
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def cut(content: bytes) -> bytes:
    """It ends in the middle."""
    return content[: len(content) * 6 // 10]


def zeroed(content: bytes) -> bytes:
    """A block of the disk was lost."""
    place = len(content) * 8 // 10
    return content[:place] + bytes(512) + content[place + 512 :]


@pytest.mark.parametrize(
    ("form", "name", "main", "hit", "damage", "what", "why"),
    [
        ("keras", "classifier.keras", "", "", flipped, "classifier.keras is damaged", "Bad CRC-32 .*model.weights.h5"),
        ("keras", "keras_2.keras", "", "", flipped, "keras_2.keras is damaged", "Bad CRC-32 .*model.weights.h5"),
        ("tflite", "int8.tflite", "", "", zeroed, "LiteRT does not take int8.tflite", "it is damaged, .*CONV_2D"),
        *(
            ("checkpoint", "checkpoint", "model.ckpt-100.meta", f"model.ckpt-100.{part}", *rest)
            for part, *rest in (
                ("index", flipped, "model.ckpt-100.index is damaged", "block checksum mismatch"),
                ("index", cut, "model.ckpt-100.index is damaged", "not an sstable"),
                (DATA, flipped, f"model.ckpt-100.{DATA} is damaged", "Checksum does not match"),
                (DATA, cut, f"model.ckpt-100.{DATA} is damaged", "Read less bytes than requested"),
            )
        ),
        *(
            ("savedmodel", name, "saved_model.pb", f"variables/variables.{part}", *rest)
            for name, part, *rest in (
                ("fer", "index", flipped, "variables/variables.index is damaged", "block checksum mismatch"),
                ("fer", DATA, flipped, f"variables/variables.{DATA} is damaged", "Checksum does not match"),
                ("lstm", DATA, cut, f"variables/variables.{DATA} is damaged", "Read less bytes than requested"),
                ("tensorflow_1", "index", cut, "variables/variables.index is damaged", "not an sstable"),
                ("tensorflow_1", DATA, flipped, f"variables/variables.{DATA} is damaged", "Checksum does not match"),
            )
        ),
    ],
)
def test_a_damaged_file_is_named_with_the_reason_and_the_way_out(tmp_path, form, name, main, hit, damage, what, why):
    made = tensorflow_models.path(name)
    folder = tmp_path / "model"
    if made.is_dir():
        shutil.copytree(made, folder)
    else:
        folder.mkdir()
        shutil.copyfile(made, folder / name)
    path = folder / (main or name)
    broken = folder / (hit or name)
    broken.write_bytes(damage(broken.read_bytes()))
    with pytest.raises(ConversionError, match=why) as raised:
        converted(form, path, tmp_path / "out")
    assert raised.value.what == f"made/1: {what}"
    assert raised.value.do == (AGAIN if form != "tflite" else "Copy it again completely, or convert it again")
    for noise in (str(tmp_path), "[[{{", "Graph execution error", "Traceback", "DataLossError"):
        assert noise not in str(raised.value)


def converted(form: str, path: Path, out: Path) -> None:
    out.mkdir()
    source, settings = Source("made/1", form, path, (path,)), Settings()
    job = job_of(source, FORMATS[form].describe(path, settings, "made/1"), settings, {})
    convert(source, job, (), TOOLCHAINS["tensorflow"], made_models.toolchain_python("tensorflow"), settings, out)
