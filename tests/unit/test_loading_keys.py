"""What decides whether an entry is the right one: all that its bytes depend on, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from custom_operators import LIBRARY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loading_worker import answer, config, in_own_process, loaded, namespaces, write_model
from onnx import TensorProto, helper, numpy_helper
from unified_backend import batching, hosts, loading
from unified_backend.cache import Cache, FileMemo, Key, Snapshot
from unified_backend.conversion import normalise
from unified_backend.engines import Canonical
from unified_backend.engines.onnxruntime import OnnxRuntime
from unified_backend.errors import CacheFullError, SourceChangedError
from unified_backend.formats import Source, find_source
from unified_backend.forms import reference
from unified_backend.model_keys import batching_key, canonical_key, engine_key
from unified_backend.settings import Settings, read_settings
from unified_backend.tensors import Signature

KINDS = ("canonical", "batching", "engine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with its weights in a file beside it."""
    return write_model(tmp_path_factory.mktemp("repository") / "net/1", external="weights.bin")


@pytest.fixture(scope="module")
def memo(tmp_path_factory) -> FileMemo:
    return FileMemo(tmp_path_factory.mktemp("memo"))


def fields_of(files: list[Path], memo: FileMemo, settings: Settings) -> dict[str, Key]:
    """The keys of a model's entries."""
    source = Source("net/1", "onnx", files[0], tuple(files))
    canonical = canonical_key(source, settings, Snapshot(memo, files).digests, memo)
    return {
        "canonical": canonical,
        "batching": batching_key(canonical.digest, {}),
        "engine": engine_key(canonical.digest, OnnxRuntime(), settings),
    }


def keys_of(files: list[Path], memo: FileMemo, settings: Settings) -> dict[str, str]:
    """Their digests."""
    return {kind: key.digest for kind, key in fields_of(files, memo, settings).items()}


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {kind for kind in KINDS if one[kind] != other[kind]}


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_byte_of_the_source_is_in_every_key(folder, memo, tmp_path, data):
    """Of the model and of its external data: any bit flipped, any byte added or taken away."""
    files = []
    for name in ("model.onnx", "weights.bin"):
        files.append(tmp_path / name)
        shutil.copyfile(folder / name, files[-1])
    before = keys_of(files, memo, Settings())
    victim = data.draw(st.sampled_from(files))
    content = bytearray(victim.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "insert", "delete", "cut", "exchange"])):
        case "flip":
            content[position] ^= 1 << data.draw(st.integers(0, 7))
        case "insert":
            content.insert(position, data.draw(st.integers(0, 255)))
        case "delete":
            del content[position]
        case "cut":
            del content[position:]
        case "exchange":
            content = content[position:] + content[:position]
    same = bytes(content) == victim.read_bytes()
    victim.write_bytes(content)
    assert changed(before, keys_of(files, memo, Settings())) == (set() if same else set(KINDS))


def test_the_files_of_a_model_are_not_interchangeable(folder, memo):
    files = [folder / "model.onnx", folder / "weights.bin"]
    assert changed(keys_of(files, memo, Settings()), keys_of(files[::-1], memo, Settings())) == set(KINDS)


# Every field of Settings: two parameter values of it, and the entries that it is part of the key of.
SETTINGS: dict[str, tuple[dict[str, str], set[str]]] = {
    "source": ({"source": "model.onnx"}, set()),  # what it chooses has its bytes in the key
    "engine": ({"engine": "onnxruntime"}, set()),  # the key names the engine that was taken
    "build": ({"build": "background"}, set()),
    "autotune": ({"autotune": "1"}, set()),  # the key names the engine that was chosen
    "openvino_hint": ({"openvino_hint": "throughput"}, set()),  # of compiling, which every load does
    "graph_optimization": ({"graph_optimization": "basic"}, {"engine"}),
    "batching": ({"batching": "loop"}, set()),
    "warm_up": ({"warm_up": "1,2"}, set()),
    "intra_op_thread_count": ({"intra_op_thread_count": "3"}, set()),
    "inter_op_thread_count": ({"inter_op_thread_count": "3"}, set()),
    "execution_mode": ({"execution_mode": "parallel"}, set()),
    "enable_mem_arena": ({"enable_mem_arena": "0"}, set()),
    "enable_mem_pattern": ({"enable_mem_pattern": "0"}, set()),
    "arena_shrinkage": ({"memory.enable_memory_arena_shrinkage": "cpu:0"}, set()),
    "custom_op_library": ({"custom_op_library": LIBRARY}, set(KINDS)),
    # Of each there is a test in test_tensorrt_options.
    "tensorrt": ({"builder_optimization_level": "5"}, set()),
    "session_options": ({"session.set_denormal_as_zero": "1"}, set(KINDS)),
    "require_cached": ({"require_cached": "1"}, set()),
    **{
        name: ({name: value}, set())  # an ONNX source is neither converted nor described by its format
        for name, value in {
            "signature": "encode",
            "tags": "serve,gpu",
            "inputs": "x:0[1,4]",
            "outputs": "y:0",
            "names": '{"x": "image"}',
            "opset": "17",
            "converter": '{"large_model": true}',
            "allow_unsafe": "1",
            "method": "encode",
            "arguments": '{"times": 2}',
            "stateful": "allow",
            "num_threads": "2",
            "split_along_outer_axis": "FRAMES:TIMES",
            "verify": "warn",
            "tolerance": "0.01",
            "conversion_seconds": "60",
            "conversion_memory": "1GB",
            # Of the GPU's: what changes an engine there is in the keys of those engines.
            "batch_buckets": "1,4",
            "contexts": "1",
            "cuda_graph": "0",
            "tf32": "1",
            # The key of the model in that precision has these, and the engine's key has that one's digest.
            "precision": "fp16",
            "exclude": "Resize,head_*",
            "calibration": "photographs",
            "calibration_method": "entropy",
            "prefer_nhwc": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "gpu_mem_limit": "1GB",
            "gpu_outputs": "1",
            "preprocess": "imagenet",
            "postprocess": "softmax | topk(5)",  # the key of the model that it is composed onto has it
        }.items()
    },
}


def test_every_setting_has_been_thought_of():
    """Whoever adds one decides here whether an entry's bytes depend on it."""
    # Of the GPU and the profiles, which no parameter sets, the engines that depend on them have them in their keys.
    assert {*SETTINGS, "gpu", "profiles"} == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(("parameters", "kinds"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_changes_the_keys_of_what_depends_on_it(folder, memo, parameters, kinds):
    files = [folder / "model.onnx", folder / "weights.bin"]
    given = read_settings("net/1", parameters, ("onnxruntime",))
    assert given != Settings()
    assert changed(keys_of(files, memo, Settings()), keys_of(files, memo, given)) == kinds


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """A model that every level of optimisation has something to do in."""
    folder = tmp_path_factory.mktemp("network")
    weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16, 8, 8]) for name in "XY")
    nodes = [
        helper.make_node("Identity", ["X"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["b"], ["Y"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weights]), ir_version=8)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 17))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def built(model: Path, out: Path, settings: Settings) -> dict[str, bytes]:
    """The engine's files, by name."""
    out.mkdir()
    OnnxRuntime().build(Canonical("net/1", model, "digest", Signature((), ())), settings, out)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize("name", [name for name, (_, kinds) in SETTINGS.items() if "engine" not in kinds])
def test_a_setting_that_is_not_in_the_engines_key_does_not_change_its_bytes(network, tmp_path, name):
    given = read_settings("net/1", SETTINGS[name][0], ("onnxruntime",))
    assert built(network, tmp_path / "a", Settings()) == built(network, tmp_path / "b", given)


def test_a_setting_in_the_engines_key_changes_its_bytes(network, tmp_path):
    levels = [built(network, tmp_path / level, Settings(graph_optimization=level)) for level in ("none", "basic")]
    levels.append(built(network, tmp_path / "extended", Settings(graph_optimization="extended")))
    assert len({engine["model.onnx"] for engine in levels}) == 3


def test_a_custom_library_is_known_by_its_bytes(folder, memo, tmp_path):
    files = [folder / "model.onnx"]
    copies = [tmp_path / "ops.so", tmp_path / "of the same bytes.so", tmp_path / "other.so"]
    for copy, content in zip(copies, (b"library", b"library", b"librarY"), strict=True):
        copy.write_bytes(content)
    first, same, other = (keys_of(files, memo, Settings(custom_op_library=(str(copy),))) for copy in copies)
    assert changed(first, same) == set()
    assert changed(first, other) == set(KINDS)
    both = [Settings(custom_op_library=(str(copies[one]), str(copies[2 - one]))) for one in (0, 2)]
    assert changed(keys_of(files, memo, both[0]), keys_of(files, memo, both[1])) == set(KINDS)


@given(name=st.sampled_from(["session.a", "optimization.b", "ep.c"]), value=st.text("01ab", min_size=1, max_size=3))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_session_option_is_in_the_keys(folder, memo, name, value):
    files = [folder / "model.onnx"]
    given = [{}, {name: value}, {name: value + "x"}, {name: value, "session.z": "1"}]
    keys = [keys_of(files, memo, read_settings("net/1", one, ())) for one in given]
    assert len({key["engine"] for key in keys}) == len(given)


@given(order=st.permutations(["session.a", "session.b", "graph_optimization", "warm_up", "ep.c"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_order_of_parameters_is_in_no_key(folder, memo, order):
    values = {"session.a": "1", "session.b": "2", "graph_optimization": "basic", "warm_up": "2", "ep.c": "3"}
    files = [folder / "model.onnx"]
    one, other = (read_settings("net/1", {name: values[name] for name in names}, ()) for names in (values, order))
    assert changed(keys_of(files, memo, one), keys_of(files, memo, other)) == set()


@given(
    dims=st.dictionaries(
        st.text("xyz", min_size=1, max_size=2), st.dictionaries(st.integers(0, 3), st.integers(1, 9)), max_size=3
    ),
    axis=st.integers(0, 3),
    size=st.integers(1, 9),
)
def test_every_fixed_dimension_is_in_the_key_of_the_proof(dims, axis, size):
    before = batching_key("digest", dims)
    assert batching_key("digest", dict(reversed(dims.items()))).digest == before.digest
    after = {**dims, "x": {**dims.get("x", {}), axis: size}}
    assert (batching_key("digest", after).digest == before.digest) == (after == dims)


ENVIRONMENT: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[str]]] = {
    "onnx": (lambda patch: patch.setattr(onnx, "__version__", "99"), set(KINDS)),
    "onnxruntime": (lambda patch: patch.setattr(onnxruntime, "__version__", "99"), set(KINDS)),
    "onnxruntime's build": (lambda patch: patch.setattr(onnxruntime, "get_build_info", lambda: "mine"), set(KINDS)),
    "processor": (lambda patch: patch.setattr(hosts, "cpu_features", lambda: "x86_64,avx"), {"batching", "engine"}),
    "normalising": (lambda patch: patch.setattr(normalise, "RECIPE", 99), set(KINDS)),
    "proving": (lambda patch: patch.setattr(batching, "RECIPE", 99), {"batching"}),
    "schema": (lambda patch: patch.setattr("unified_backend.cache.keys.SCHEMA", 99), set(KINDS)),
    "host name": (lambda patch: patch.setattr("socket.gethostname", lambda: "another"), set()),
}


@pytest.mark.parametrize(("change", "kinds"), ENVIRONMENT.values(), ids=ENVIRONMENT)
def test_versions_and_device_are_in_the_keys_of_what_depends_on_them(folder, tmp_path, monkeypatch, change, kinds):
    files = [folder / "model.onnx"]
    before = keys_of(files, FileMemo(tmp_path / "memo"), Settings())
    change(monkeypatch)
    assert changed(before, keys_of(files, FileMemo(tmp_path / "another memo"), Settings())) == kinds


def test_no_key_holds_a_path(folder, tmp_path, memo):
    library = tmp_path / "ops.so"
    library.write_bytes(b"library")
    for key in fields_of([folder / "model.onnx"], memo, Settings(custom_op_library=(str(library),))).values():
        assert "/" not in json.dumps(dict(key.fields)).replace(onnxruntime.get_build_info(), "")


@pytest.mark.skipif(not namespaces(), reason="needs a namespace for another host name")
def test_where_when_and_by_whom_a_model_is_loaded_is_in_no_key(tmp_path):
    """Another folder, model, cache and order of parameters; other times, host name, hash seed, locale and time zone."""
    first = write_model(tmp_path / "here/net/1", external="weights.bin")
    second = tmp_path / "a second repository/other name/17"
    shutil.copytree(first, second)
    for path in second.iterdir():
        os.utime(path, (1, 1))
    one = in_own_process(
        {"folder": str(first), "config": config(graph_optimization="basic", session__set_denormal_as_zero="1")},
        TRITON_UNIFIED_CACHE=str(tmp_path / "cache"),
        PYTHONHASHSEED="1",
    )
    other = in_own_process(
        {"folder": str(second), "config": config(session__set_denormal_as_zero="1", graph_optimization="basic")},
        before="hostname another-host; cd /; umask 077",
        TRITON_UNIFIED_CACHE=str(tmp_path / "another cache"),
        PYTHONHASHSEED="2",
        LC_ALL="C",
        TZ="Asia/Tokyo",
    )
    assert len(one["keys"]) == len(KINDS)
    assert one["keys"] == other["keys"]


def assert_answers(found: dict[str, Any], seed: int) -> None:
    np.testing.assert_allclose(found["answer"], answer(seed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("external", [None, "weights.bin"])
def test_models_alike_but_for_their_weights_share_nothing(tmp_path, external):
    with Cache(tmp_path / "cache") as cache:
        found = [loaded(write_model(tmp_path / f"r/m{seed}/1", seed, external), cache) for seed in (1, 2)]
        for one, seed in zip(found, (1, 2), strict=True):
            assert_answers(one, seed)
        assert not set(found[0]["keys"]) & set(found[1]["keys"])


@pytest.mark.parametrize("external", [None, "weights.bin"])
def test_a_model_updated_in_place_answers_with_its_new_weights(tmp_path, external):
    """Written over at once, too quickly for a file system's clock to tell."""
    folder = tmp_path / "r/m/1"
    for seed in (1, 2, 3, 1):
        with Cache(tmp_path / "cache") as cache:
            assert_answers(loaded(write_model(folder, seed, external), cache), seed)


def sparse(kind: str, folder: Path, value: float) -> Path:
    """Y = X + w with a sparse w whose values lie in a file beside the model; an initializer, or in a Constant node."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.full(32, value, np.float32)
    (folder / "values.bin").write_bytes(array.tobytes())
    values = numpy_helper.from_array(array, "w")
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    entry = values.external_data.add()
    entry.key, entry.value = "location", "values.bin"
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(np.arange(32), "i"), [64])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in "XY")
    nodes = [helper.make_node("Add", ["X", "w"], ["Y"])]
    if kind == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=tensor))
    graph = helper.make_graph(nodes, "g", [x], [y])
    if kind == "initializer":
        graph.sparse_initializer.append(tensor)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


@pytest.mark.parametrize("kind", ["initializer", "constant"])
def test_the_data_of_sparse_tensors_is_part_of_the_model(tmp_path, kind):
    for value in (2.0, 5.0):
        folder = sparse(kind, tmp_path / "r/m/1", value)
        assert [path.name for path in find_source("m/1", folder, FileMemo(tmp_path / "memo")).files] == [
            "model.onnx",
            "values.bin",
        ]
        with Cache(tmp_path / "cache") as cache:
            loaded_answer = np.array(loaded(folder, cache)["answer"])
        assert loaded_answer[0, 0] == pytest.approx(-1 + value)


def replace_during(patch: pytest.MonkeyPatch, place: object, name: str, folder: Path, seed: int) -> None:
    """Have the model replaced by that of `seed` before the work of a maker, once."""
    work = getattr(place, name)

    def first_replaced(*arguments: Any) -> Any:
        patch.undo()
        write_model(folder, seed)
        return work(*arguments)

    patch.setattr(place, name, first_replaced)


@pytest.mark.parametrize(
    ("place", "name", "published"),
    [
        (reference, "normalise", 0),
        (reference, "open_reference", 0),
        (loading, "prove_batching", 1),
        (OnnxRuntime, "build", 2),
    ],
)
def test_what_was_made_of_a_file_that_changed_meanwhile_is_not_kept(tmp_path, place, name, published):
    folder = write_model(tmp_path / "r/m/1", seed=1)
    with Cache(tmp_path / "cache") as cache:
        with pytest.MonkeyPatch.context() as patch:
            replace_during(patch, place, name, folder, seed=2)
            with pytest.raises(SourceChangedError, match="the model changed while it was being loaded"):
                loaded(folder, cache)
        assert len(list(cache.store.entries())) == published
        assert_answers(loaded(folder, cache), 2)
        assert_answers(loaded(write_model(folder, seed=1), cache), 1)
        assert_answers(loaded(write_model(folder, seed=2), cache), 2)


def test_a_file_that_changed_is_not_served_from_memory_under_the_old_signature(tmp_path, monkeypatch):
    """Where no disk has room, the engine is made of the file itself: it must be the one that was described."""
    folder = write_model(tmp_path / "r/m/1", seed=1)

    def no_room(*_: object) -> None:
        write_model(folder, seed=2)
        raise CacheFullError("no", "room", "make some")

    monkeypatch.setattr(OnnxRuntime, "build", no_room)
    with Cache(tmp_path / "cache") as cache, pytest.raises(SourceChangedError):
        loaded(folder, cache)


def test_entries_hold_no_path_and_no_pickle(tmp_path):
    """They are signed, sent to other hosts and loaded there."""
    folder = write_model(tmp_path / "a-recognisable-repository/net/1", external="data.bin", unfit=True)
    root = tmp_path / "a-recognisable-cache"
    with Cache(root) as cache:
        assert_answers(loaded(folder, cache), 0)
    entries = [path for path in (root / "entries").rglob("*") if path.is_file()]
    assert {path.name for path in entries} == {"manifest.json", "model.onnx", "weights.bin", "data.bin"}
    for path in entries:
        content = path.read_bytes()
        assert b"recognisable" not in content
        assert str(tmp_path).encode() not in content
        assert not content.startswith(b"\x80")  # how pickles of protocol 2 and up begin
        assert b"numpy" not in content


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig"])
def test_data_named_like_an_entrys_own_files_is_refused_where_it_would_be_written_over(tmp_path, name):
    folder = write_model(tmp_path / "r/m/1", external=name)
    with Cache(tmp_path / "cache") as cache:
        assert_answers(loaded(folder, cache), 0)  # nothing needs a repair, so nothing is copied
        write_model(folder, external=name, unfit=True)
        with pytest.raises(Exception, match=f"has its external data in {name}.*Export the model again"):
            loaded(folder, cache)
