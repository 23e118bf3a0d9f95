"""What `triton-unified init` makes, in a real server."""

from __future__ import annotations

from pathlib import Path

from helpers import Triton, command, doubles, doubling_onnx


def test_a_model_as_it_was_made_is_served(triton: Triton, tmp_path: Path) -> None:
    """The file is called as Triton's own ONNX Runtime backend would have it, and the name has all kinds of letters."""
    (tmp_path / "model.onnx").write_bytes(doubling_onnx())
    name = "0_New-model.onnx_v1.5"
    done = command("init", name, "--from", tmp_path / "model.onnx", "--into", triton.repository)
    assert done.returncode == 0, done.stderr
    triton.load(name)
    assert doubles(triton.url, name, (1, 4))
    triton.unload(name)
