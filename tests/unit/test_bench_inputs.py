"""What requests of `bench` hold."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import photographs
from unified_backend.errors import MeasurementError, Refused
from unified_backend.measuring.inputs import Inputs, choose_inputs, parse_shapes

IMAGE = {"name": "image", "data_type": "TYPE_FP32", "dims": ["3", "-1", "-1"]}
TOKENS = {"name": "ids", "data_type": "TYPE_INT64", "dims": ["-1"]}
BYTES = {"name": "file", "data_type": "TYPE_STRING", "dims": ["1"]}


def chosen(*inputs: dict[str, Any], data: Path | None = None, size: int = 8, **given: Any) -> Inputs:
    def answers(feeds: Any, types: Any) -> None:
        given.get("asked", []).append({name: array.shape for name, array in feeds.items()})
        if (refuses := given.get("refuses")) and refuses(feeds):
            raise MeasurementError("the request failed", "it does not fit", "Correct it")

    config = {"name": "net", "max_batch_size": size, "input": list(inputs), "output": []}
    return choose_inputs(config, data, given.get("samples", ()), given.get("shapes", {}), answers)


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["data"]
    return rows


def test_made_up_inputs_take_the_sizes_that_the_model_answers(tmp_path: Path) -> None:
    asked: list[Any] = []
    found = chosen(IMAGE, asked=asked, refuses=lambda feeds: feeds["image"].shape[2] != 224)
    assert len(asked) > 1
    assert found.feeds(4)["image"].shape == (4, 3, 224, 224)
    assert found.words == "random numbers (floats in [0, 1)): image [3, 224, 224]"
    [row] = rows_of(found.write(tmp_path / "in.json", 4))
    content = np.frombuffer(base64.b64decode(row["image"]["content"]["b64"]), np.float32)
    assert row["image"]["shape"] == [3, 224, 224]
    assert content.size == 3 * 224 * 224
    assert 0 <= content.min() < content.max() < 1


def test_made_up_integers_stay_in_a_vocabulary_that_the_model_answers() -> None:
    found = chosen(TOKENS, refuses=lambda feeds: feeds["ids"].max() >= 50)
    assert found.feeds(1)["ids"].max() < 2
    assert "integers in [0, 2)" in found.words


def test_a_shape_decides_open_dimensions() -> None:
    found = chosen(IMAGE, shapes=parse_shapes(["image:3,10,20"]))
    assert found.feeds(1)["image"].shape == (1, 3, 10, 20)
    with pytest.raises(Refused, match="does not fit"):
        chosen(IMAGE, shapes=parse_shapes(["image:4,10,20"]))
    with pytest.raises(Refused, match="inputs are image"):
        chosen(IMAGE, shapes=parse_shapes(["picture:3,10,20"]))
    with pytest.raises(Refused, match="not understood"):
        parse_shapes(["image=3"])


def test_a_model_that_answers_nothing_made_up_asks_for_data() -> None:
    with pytest.raises(Refused, match="--data"):
        chosen(BYTES, refuses=lambda _: True)


def test_images_go_to_a_model_of_bytes_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name, content in photographs().items():
        (tmp_path / "photos" / name).with_suffix(".jpg").write_bytes(content)
    found = chosen(BYTES, data=tmp_path / "photos")
    assert found.words == f"5 images of {tmp_path / 'photos'}, as encoded bytes"
    rows = rows_of(found.write(tmp_path / "in.json", 1))
    sent = base64.b64decode(rows[0]["file"]["content"]["b64"])
    assert sent[4:] == photographs()["astronaut"]
    assert int.from_bytes(sent[:4], "little") == len(sent) - 4
    assert found.feeds(8)["file"].shape == (8, 1)


def test_images_are_decoded_for_a_model_of_pixels_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photographs()["chelsea"])
    found = chosen({**IMAGE, "dims": ["3", "32", "48"]}, data=tmp_path)
    assert found.words == f"1 image of {tmp_path}, decoded and resized to 48 by 32 here"
    pixels = found.feeds(1)["image"]
    assert pixels.shape == (1, 3, 32, 48)
    assert 0.3 < pixels.mean() < 0.7
    last = chosen({"name": "x", "data_type": "TYPE_UINT8", "dims": ["1", "32", "48", "3"]}, data=tmp_path, size=0)
    assert last.feeds(1)["x"].shape == (1, 32, 48, 3)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(Refused, match=r"b\.jpg is no image"):
        chosen({**IMAGE, "dims": ["3", "32", "48"]}, data=tmp_path)


def test_arrays_are_split_into_samples(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(3, 4)
    np.savez(tmp_path / "a.npz", ids=ids)
    np.save(tmp_path / "b.npy", ids[0] + 100)
    found = chosen(TOKENS, data=tmp_path)
    assert [row["ids"].tolist() for row in found.rows] == [*ids.tolist(), [100, 101, 102, 103]]
    assert found.feeds(2)["ids"].tolist() == ids[:2].tolist()
    np.savez(tmp_path / "c.npz", wrong=ids)
    with pytest.raises(Refused, match=r"c\.npz has no array named ids"):
        chosen(TOKENS, data=tmp_path)


def test_requests_of_perf_analyzer_are_read_with_strings_too(tmp_path: Path) -> None:
    text = b"caf\xc3\xa9\0"
    content = base64.b64encode(len(text).to_bytes(4, "little") + text).decode()
    rows = [{"file": {"content": {"b64": content}, "shape": [1]}}, {"file": ["plain"]}]
    (tmp_path / "in.json").write_text(json.dumps({"data": rows}))
    found = chosen(BYTES, data=tmp_path / "in.json")
    assert [row["file"].tolist() for row in found.rows] == [[text], ["plain"]]


def test_samples_beside_the_model_are_taken_without_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", ids=np.array([[7, 8]]))
    found = chosen(TOKENS, samples=[tmp_path / "one.npz"])
    assert found.rows[0]["ids"].tolist() == [7, 8]
    assert found.words.startswith("the model's own samples")


def test_samples_of_one_shape_share_a_batch(tmp_path: Path) -> None:
    for number, length in enumerate((3, 5, 3)):
        np.savez(tmp_path / f"{number}.npz", ids=np.full((1, length), number))
    found = chosen(TOKENS, data=tmp_path)
    assert found.feeds(2)["ids"].tolist() == [[0, 0, 0], [2, 2, 2]]
    assert len(rows_of(found.write(tmp_path / "in.json", 1))) == 3
    assert len(rows_of(found.write(tmp_path / "in.json", 2))) == 2


@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
def test_data_that_is_not_there_is_refused(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "data").mkdir()
    with pytest.raises(Refused, match="--data"):
        chosen(BYTES, data=tmp_path / "data")
