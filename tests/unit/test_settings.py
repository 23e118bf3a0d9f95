"""Parameters and environment variables: typed, validated, and never ignored without a word."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from unified_backend.errors import ConfigError
from unified_backend.settings import Settings, read_settings
from unified_backend.variables import cache_settings, default_max_batch_size

ENGINES = ("onnxruntime",)


def test_nothing_given_is_the_default():
    assert read_settings("m/1", {}, ENGINES) == Settings()


@pytest.mark.parametrize(
    ("parameters", "field", "value"),
    [
        ({"intra_op_thread_count": "3"}, "intra_op_thread_count", 3),
        ({"execution_mode": "1"}, "execution_mode", "parallel"),
        ({"execution_mode": "sequential"}, "execution_mode", "sequential"),
        ({"enable_mem_arena": "0"}, "enable_mem_arena", False),
        ({"memory.enable_memory_arena_shrinkage": "cpu:0"}, "arena_shrinkage", True),
        ({"warm_up": "1, 4,8"}, "warm_up", (1, 4, 8)),
        ({"warm_up": "off"}, "warm_up", ()),
        ({"batching": "Loop"}, "batching", "loop"),
        ({"build": "never"}, "require_cached", True),
        ({"build": "background"}, "require_cached", False),
        ({"custom_op_library": "/a.so, /b.so"}, "custom_op_library", ("/a.so", "/b.so")),
        ({"session.intra_op.allow_spinning": "0"}, "session_options", (("session.intra_op.allow_spinning", "0"),)),
    ],
)
def test_a_parameter_is_read_as_what_it_means(parameters, field, value):
    assert getattr(read_settings("m/1", parameters, ENGINES), field) == value


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("intra_op_thread_count", "-1", "0 or more"),
        ("engine", "tensorrt", "auto, onnxruntime"),
        ("batching", "maybe", "loop"),
        ("warm_up", "1,x", "1,4,8"),
        ("enable_mem_arena", "perhaps", "true"),
    ],
)
def test_a_wrong_value_names_model_parameter_value_and_choices(name, value, hint):
    with pytest.raises(ConfigError) as caught:
        read_settings("detector/1", {name: value}, ENGINES)
    message = str(caught.value)
    assert "detector/1" in message
    assert f'"{name}" is "{value}"' in message
    assert hint in message


def test_an_unknown_parameter_warns_with_the_likely_one(caplog):
    with caplog.at_level(logging.WARNING, logger="unified_backend"):
        read_settings("m/1", {"intra_op_threads_count": "2", "EXECUTION_ENV_PATH": "/x"}, ENGINES)
    assert "did you mean intra_op_thread_count?" in caplog.text
    assert "EXECUTION_ENV_PATH" not in caplog.text


def test_the_cache_is_where_the_environment_says_or_the_users():
    assert cache_settings({"TRITON_UNIFIED_CACHE": "/some/where"}).directory == Path("/some/where")
    assert cache_settings({}).directory.name == "triton-unified"


def test_the_default_batch_size_is_a_number_or_an_error():
    assert default_max_batch_size({}) == 32
    assert default_max_batch_size({"TRITON_UNIFIED_MAX_BATCH_SIZE": "8"}) == 8
    with pytest.raises(ConfigError, match="TRITON_UNIFIED_MAX_BATCH_SIZE"):
        default_max_batch_size({"TRITON_UNIFIED_MAX_BATCH_SIZE": "0"})
