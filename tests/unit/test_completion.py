"""What a partial config.pbtxt becomes, and what it may not say."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unified_backend.batching import Batching, Verdict
from unified_backend.completion import complete, fixed_dims
from unified_backend.errors import ConfigError
from unified_backend.samples import Recipe
from unified_backend.tensors import Signature, TensorSpec

IMAGE = TensorSpec("image", "FP32", ("N", 3, "H", "W"))
SCORES = TensorSpec("scores", "FP32", ("N", 10))
FEATURES = TensorSpec("features", "FP16", ("N", None, 4))
SIGNATURE = Signature((IMAGE,), (SCORES, FEATURES))
PROVEN = Batching(Verdict.PROVEN, "it does", Recipe(64, 100), {"scores": 2, "features": 3})
DIFFERS = Batching(Verdict.ROWS_DIFFER, "output scores differs", Recipe(64, 100), {"scores": 2, "features": 3})
FIXED = Signature((TensorSpec("x", "FP32", (1, 3)),), (TensorSpec("y", "FP32", (1, 2)),))
IMPOSSIBLE = Batching(Verdict.IMPOSSIBLE, "input x has a first dimension fixed at 1", None, {"y": 2})


def completed(config, signature=SIGNATURE, batching=PROVEN, **options):
    return complete("m/1", config, signature, batching, 32, **options)[0]


def refusal(config, signature=SIGNATURE, batching=PROVEN):
    with pytest.raises(ConfigError) as caught:
        completed(config, signature, batching)
    return str(caught.value)


def test_an_empty_config_is_completed_from_the_model():
    assert completed({}) == {
        "max_batch_size": 32,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": [3, -1, -1]}],
        "output": [
            {"name": "scores", "data_type": "TYPE_FP32", "dims": [10]},
            {"name": "features", "data_type": "TYPE_FP16", "dims": [-1, 4]},
        ],
        "dynamic_batching": {},
    }


def test_an_unbatchable_model_keeps_its_whole_shape():
    config = completed({}, FIXED, IMPOSSIBLE)
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [1, 3]
    assert "dynamic_batching" not in config


def test_narrower_dims_win_and_stay():
    config = completed({"input": [{"name": "image", "dims": [3, 224, 224]}]})
    assert config["input"] == [{"name": "image", "dims": [3, 224, 224], "data_type": "TYPE_FP32"}]
    assert fixed_dims(config, SIGNATURE) == {"image": {2: 224, 3: 224}}


def test_fewer_outputs_are_fewer_outputs_and_other_fields_are_kept():
    config = completed({"output": [{"name": "scores", "label_filename": "labels.txt"}], "priority": 3})
    assert config["output"] == [
        {"name": "scores", "label_filename": "labels.txt", "data_type": "TYPE_FP32", "dims": [10]}
    ]
    assert config["priority"] == 3


def test_inputs_the_user_left_out_are_added():
    two = Signature((IMAGE, TensorSpec("mask", "BOOL", ("N", 5))), (SCORES,))
    config = completed({"input": [{"name": "mask"}]}, two)
    assert [row["name"] for row in config["input"]] == ["mask", "image"]


def test_the_users_batch_size_and_scheduler_win():
    sequence = {"max_batch_size": 4, "sequence_batching": {"max_sequence_idle_microseconds": 5}}
    config = completed(sequence)
    assert config["max_batch_size"] == 4
    assert "dynamic_batching" not in config
    delayed = {"dynamic_batching": {"max_queue_delay_microseconds": 100}}
    assert completed(delayed)["dynamic_batching"] == delayed["dynamic_batching"]


def test_zero_means_zero_where_the_user_wrote_it():
    assert completed({"max_batch_size": 0})["max_batch_size"] == 32
    config = completed({"max_batch_size": 0}, max_batch_size_given=True)
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [-1, 3, -1, -1]


def test_dims_with_the_batch_dimension_mean_no_batching():
    assert completed({"input": [{"name": "image", "dims": [-1, 3, -1, -1]}]})["max_batch_size"] == 0


def test_reshape_is_what_the_client_sees():
    tensor = {"name": "image", "dims": [3, 784], "reshape": {"shape": [3, 28, 28]}}
    assert completed({"input": [tensor]})["input"] == [{**tensor, "data_type": "TYPE_FP32"}]


def test_a_scalar_is_one_element_without_the_reshape_that_triton_refuses_there():
    scalars = Signature((TensorSpec("x", "FP32", ()),), (TensorSpec("y", "FP32", ()),))
    config = completed({}, scalars, Batching(Verdict.IMPOSSIBLE, "scalar", None, {"y": 0}))
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}]
    assert completed(config, scalars, Batching(Verdict.IMPOSSIBLE, "scalar", None, {"y": 0})) == config


def test_dims_of_a_tensor_of_unknown_rank_are_the_users():
    open_rank = Signature((TensorSpec("x", "FP32", None),), (TensorSpec("y", "FP32", None),))
    unknown = Batching(Verdict.IMPOSSIBLE, "no known rank")
    assert completed({}, open_rank, unknown)["input"][0]["dims"] == [-1]
    assert completed({"input": [{"name": "x", "dims": [2, 3]}]}, open_rank, unknown)["input"][0]["dims"] == [2, 3]


def test_a_vector_of_scalars_is_batched():
    vector = Signature((TensorSpec("x", "FP32", ("N",)),), (TensorSpec("y", "FP32", ("N",)),))
    config = completed({}, vector, Batching(Verdict.PROVEN, "", Recipe(1, 2), {"y": 1}))
    assert config["max_batch_size"] == 32
    assert config["input"][0]["reshape"] == {"shape": []}


def test_max_batch_size_one_fits_a_batch_fixed_at_one():
    config = completed({"max_batch_size": 1}, FIXED, IMPOSSIBLE)
    assert config["input"][0]["dims"] == [3]


def test_a_rank_unknown_to_the_graph_is_the_rank_seen():
    unknown = Signature((IMAGE,), (TensorSpec("y", "FP32", ()),))
    config = completed({}, unknown, Batching(Verdict.PROVEN, "", Recipe(64, 2), {"y": 3}))
    assert config["output"][0]["dims"] == [-1, -1]


def test_a_model_whose_rows_differ_is_not_batched_unless_asked():
    assert completed({}, batching=DIFFERS)["max_batch_size"] == 0
    config, notes = complete("m/1", {"max_batch_size": 8}, SIGNATURE, DIFFERS, 32)
    assert config["max_batch_size"] == 8
    assert any("output scores differs" in note for note in notes)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"input": [{"name": "img"}]}, ['input "img"', "image"]),
        ({"output": [{"name": "image"}]}, ['output "image"', "scores, features"]),
        ({"input": [{"name": "image"}, {"name": "image"}]}, ['"image" is there twice']),
        ({"input": [{"name": "image", "data_type": "TYPE_UINT8"}]}, ["TYPE_UINT8", "`data_type: TYPE_FP32`"]),
        ({"output": [{"name": "scores", "dims": [11]}]}, ["[11]", "[10]", "`dims: [10]`"]),
        ({"input": [{"name": "image", "dims": [224, 224]}]}, ["[224, 224]", "[3, -1, -1]", "ranks differ"]),
    ],
)
def test_a_conflict_names_field_both_values_and_the_line(config, parts):
    message = refusal(config)
    assert message.startswith("m/1: ")
    for part in parts:
        assert part in message


def test_a_batch_size_for_an_unbatchable_model_is_refused_with_the_reason():
    message = refusal({"max_batch_size": 8}, FIXED, IMPOSSIBLE)
    for part in ("max_batch_size is 8", "fixed at 1", "`max_batch_size: 0`"):
        assert part in message


DIMENSION = st.one_of(st.integers(1, 5), st.sampled_from(["N", "H"]), st.none())
SPEC = st.tuples(st.sampled_from(["FP32", "INT64", "STRING", "BF16"]), st.lists(DIMENSION, max_size=4).map(tuple))
SIDE = st.lists(SPEC, min_size=1, max_size=3)


@given(SIDE, SIDE, st.sampled_from(list(Verdict)), st.integers(0, 5))
def test_completing_a_complete_config_changes_nothing(inputs, outputs, verdict, size):
    signature = Signature(
        *(
            tuple(TensorSpec(f"{letter}{i}", *spec) for i, spec in enumerate(side))
            for letter, side in (("i", inputs), ("o", outputs))
        )
    )
    ranks = {spec.name: len(spec.shape) for spec in signature.outputs}
    if verdict is not Verdict.IMPOSSIBLE and not all(spec.shape for spec in (*signature.inputs, *signature.outputs)):
        verdict = Verdict.IMPOSSIBLE  # as `prove_batching` finds for scalars
    batching = Batching(verdict, "because", Recipe(8, 2), ranks)
    configs = [{"max_batch_size": size if verdict is not Verdict.IMPOSSIBLE else 0}]
    for given_size in (False, True, True):
        configs.append(completed(configs[-1], signature, batching, max_batch_size_given=given_size))
    for once, again in pairwise(configs[1:]):
        assert once == again
    assert fixed_dims(configs[1], signature) == {}
