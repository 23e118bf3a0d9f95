"""Which GPU an instance gets, on a host whose driver is told to have two."""

from __future__ import annotations

from pathlib import Path

import pytest
from unified_backend import gpus
from unified_backend.gpus import Driver, Gpu, gpu_of, gpu_of_instance

FIRST, SECOND = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0)), Gpu(1, "NVIDIA L4", (8, 9))


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    # No machine of the tests has a GPU: what the driver answers is made up, what follows from it is not.
    monkeypatch.setattr(gpus, "driver", lambda: Driver((FIRST, SECOND), (13, 0)))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], FIRST),
        ([{"count": 2}], FIRST),
        ([{"kind": "KIND_GPU", "gpus": [1]}], SECOND),
        ([{"kind": "KIND_CPU"}], None),
        ([{"kind": "KIND_GPU", "gpus": [7]}], None),
    ],
)
def test_the_config_says_which_gpu_a_model_gets(groups: list[dict[str, object]], expected: Gpu | None) -> None:
    assert gpu_of({"instance_group": groups}) == expected


def test_each_instance_of_kind_gpu_gets_its_own(tmp_path: Path) -> None:
    assert gpu_of_instance("GPU", "1", tmp_path) == SECOND


def test_the_kind_that_the_core_fills_in_leaves_the_model_on_the_gpu(tmp_path: Path) -> None:
    assert gpu_of_instance("CPU", "0", tmp_path) == FIRST
    (tmp_path / "config.pbtxt").write_text("# kind: KIND_CPU is for hosts without one\ninstance_group { count: 2 }")
    assert gpu_of_instance("CPU", "0", tmp_path) == FIRST


def test_a_kind_cpu_that_the_user_wrote_keeps_it_off(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("instance_group { count: 2 kind: KIND_CPU }")
    assert gpu_of_instance("CPU", "0", tmp_path) is None


def test_an_architecture_is_spelled_as_compilers_do() -> None:
    assert (FIRST.architecture, SECOND.architecture) == ("sm90", "sm89")
