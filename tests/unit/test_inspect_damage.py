"""`triton-unified inspect` on files that were damaged on their way: which file, how, and what to do, in one line."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest
import real_models
import tensorflow_models
from commands import command
from unified_backend.formats.table import rows_of


def copied(name, target):
    """A made model of one's own; its cached original is of others, too."""
    source = tensorflow_models.path(name)
    return shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def refused(home, path):
    """What a person reads, in one line, of a file that is damaged."""
    done = command(home, "inspect", path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert len(line) < 500
    return line


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGE = {
    "empty": (lambda content: b"", "does not end as a table does"),
    "cut": (lambda content: content[:-30], "does not end as a table does"),
    "a block": (lambda content: flipped(content, 20), "checksum of its block at byte 0"),
    "the index": (lambda content: flipped(content, len(content) - 60), "checksum of its block at byte"),
    "the footer": (lambda content: content[:-48] + b"\1\1" + b"\xff" * 6 + content[-40:], "reaches beyond its end"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(
    ("name", "index"), [("checkpoint", "model.ckpt-100.index"), ("fer", "variables/variables.index")]
)
def test_a_damaged_index_of_weights_is_named(tmp_path, name, index, damage, words):
    path = copied(name, tmp_path / "m")
    (path / index).write_bytes(damage((path / index).read_bytes()))
    line = refused(tmp_path, path)
    assert f"error: m: {index} is damaged: " in line
    assert words in line
    assert "Copy it again" in line


def test_weights_that_are_cut_short_are_named_by_their_index(tmp_path):
    path = copied("checkpoint", tmp_path / "m")
    weights = path / "model.ckpt-100.data-00000-of-00001"
    weights.write_bytes(weights.read_bytes()[:-1])
    line = refused(tmp_path, path)
    assert f"m: {weights.name} is cut short: model.ckpt-100.index places weights up to byte" in line


@pytest.mark.parametrize("member", ["model.weights.h5", "config.json", "metadata.json"])
@pytest.mark.parametrize("name", ["classifier.keras", "keras_2.keras"])
def test_a_keras_file_with_a_wrong_byte_names_its_member(tmp_path, name, member):
    path = copied(name, tmp_path / "m.keras")
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    content = path.read_bytes()
    path.write_bytes(flipped(content, info.header_offset + 30 + len(member) + info.compress_size // 2))
    line = refused(tmp_path, path)
    assert f"error: m.keras is a damaged .keras file: its member {member} cannot be read (Bad CRC-32" in line
    assert "Copy it again, completely" in line


def test_a_keras_file_with_a_wrong_directory_is_said_to_be_damaged(tmp_path):
    path = copied("classifier.keras", tmp_path / "m.keras")
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.rindex(b"PK\x01\x02")))
    assert "m.keras is a damaged .keras file: its directory is none" in refused(tmp_path, path)


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "changed"])
def test_a_damaged_graph_in_text_is_not_quoted_at_length(tmp_path, cut):
    text = tensorflow_models.path("frozen.pbtxt").read_text()
    at = text.index("tensor_content") + 2000
    (tmp_path / "m.pbtxt").write_text(text[:at] if cut else f'{text[:at]}"{text[at:]}')
    line = refused(tmp_path, tmp_path / "m.pbtxt")
    assert "m.pbtxt is a damaged GraphDef file: its protobuf message does not parse" in line
    assert "Save it again, or copy it again completely" in line


def test_a_damaged_index_is_a_reason_whatever_the_damage(tmp_path):
    content = (real_models.path("musicnn", "MTT_musicnn") / ".index").read_bytes()
    chance = np.random.default_rng(8)
    rows = list(rows_of(content))
    assert [key for key, _ in rows] == sorted(key for key, _ in rows)
    for _ in range(300):
        damaged = bytearray(content)
        for position in chance.integers(0, len(content), int(chance.integers(1, 9))):
            damaged[position] = int(chance.integers(0, 256))
        try:
            list(
                rows_of(
                    bytes(damaged[: int(chance.integers(1, len(content) + 1))] if chance.random() < 0.5 else damaged)
                )
            )
        except ValueError as error:
            assert str(error)
