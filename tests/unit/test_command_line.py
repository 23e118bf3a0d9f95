"""What all commands have in common: they are found, completed, and wait for nothing that they do not need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from commands import COMMAND, command


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("triton-unified be", {"bench"}),
        ("triton-unified cache p", {"push", "pull"}),
        ("triton-unified bench --eng", {"--engines"}),
    ],
)
def test_the_shell_completes_commands_and_options(typed, offered):
    asked = {"_TRITON_UNIFIED_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run([COMMAND], env=os.environ | asked, capture_output=True, text=True, check=False, timeout=60)
    assert set(done.stdout.split()) == offered


def test_a_mistyped_command_is_answered_with_the_one_that_is_meant(tmp_path):
    done = command(tmp_path, "srve")
    assert done.returncode == 2
    assert "'serve'" in done.stderr


def test_a_command_imports_nothing_that_another_needs():
    code = (
        "import sys; from unified_backend.cli import app; app(['version'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"numpy", "onnxruntime", "google.protobuf", "unified_backend.loading"} & set(done.stdout.split())
