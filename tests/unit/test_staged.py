"""An engine with stages around it: what one request does wrong harms no other, and batches overlap."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from unified_backend.engines.device import DeviceRunner
from unified_backend.engines.uploads import DeviceArray
from unified_backend.errors import EngineError, RequestError, UnifiedError
from unified_backend.serving.each import EachExecutor
from unified_backend.serving.executor import Executor, Plan
from unified_backend.stages import Rows
from unified_backend.stages.parts import Before
from unified_backend.stages.staged import StagedRunner
from unified_backend.tensors import Signature, TensorSpec


class Numbers:
    """A stage: each sample is the text of a number, and becomes a row of two."""

    signature = Signature((TensorSpec("text", "BYTES", (None, 1)),), (TensorSpec("pair", "FP32", (None, 2)),))

    def __init__(self, refuses_batches=False):
        self.batches = []
        self.refuses_batches = refuses_batches

    def run(self, feeds):
        texts = feeds["text"][:, 0]
        if self.refuses_batches and len(texts) > 1:
            raise RequestError("the batch cannot be read", "one of them is bad", "Send others")
        self.batches.append(len(texts))
        failed = {
            at: RequestError('input "text" cannot be read', f"{text!r} is no number", "Send a number")
            for at, text in enumerate(texts)
            if not text.isdigit()
        }
        rows = [[float(text), 1] for at, text in enumerate(texts) if at not in failed]
        return Rows({"pair": np.array(rows, np.float32).reshape(-1, 2)}, failed)

    def close(self):
        pass


class Adds:
    """An engine: the sum of a row and of an offset that requests may bring; it refuses negative offsets."""

    def __init__(self, offset=False):
        offsets = (TensorSpec("offset", "FP32", (None, 1)),) if offset else ()
        self.signature = Signature(
            (TensorSpec("x", "FP32", (None, 2)), *offsets), (TensorSpec("y", "FP32", (None, 1)),)
        )
        self.batches = []
        self.running = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self, feeds, outputs, into=None):
        self.running.set()
        assert self.go_on.wait(30)
        if (feeds.get("offset", np.zeros(1)) < 0).any():
            raise EngineError("the engine failed", "an offset is negative", "Send another")
        self.batches.append(len(feeds["x"]))
        return [feeds["x"].sum(1, keepdims=True) + feeds.get("offset", 0) for _ in outputs]

    def close(self):
        pass


def texts(*samples: bytes) -> dict[str, np.ndarray]:
    return {"text": np.array([[sample] for sample in samples], object)}


def staged(engine=None, stage=None, batched=True, **options) -> StagedRunner:
    engine, stage = engine or Adds(), stage or Numbers()
    rest = engine.signature.inputs[1:]
    signature = Signature((*stage.signature.inputs, *rest), engine.signature.outputs)
    return StagedRunner(engine, signature, batched, Before(stage, {"pair": "x"}), **options)


def answers(runner, *requests, outputs=("y",)):
    """Sums as lists; of a request that failed its error."""
    found = runner.finish(runner.prepare(requests), outputs)
    return [one if isinstance(one, UnifiedError) else one[outputs[0]][:, 0].tolist() for one in found]


def test_a_bad_sample_fails_its_own_request_and_is_named_by_its_place_there():
    runner = staged()
    first, second, third = answers(runner, texts(b"1", b"2"), texts(b"3", b"x", b"4"), texts(b"5"))
    assert (first, third) == ([2, 3], [6])
    assert "sample 1 of 3" in str(second)
    assert "b'x' is no number" in str(second)
    assert runner.runner.batches == [3]  # the good ones are one batch of the engine


def test_a_request_of_one_sample_is_not_told_its_place():
    [error] = answers(staged(), texts(b"x"))
    assert str(error) == "input \"text\" cannot be read: b'x' is no number. Send a number."


def test_only_bad_requests_reach_no_engine():
    runner = staged()
    assert all(isinstance(one, RequestError) for one in answers(runner, texts(b"x"), texts(b"y")))
    assert runner.runner.batches == []


def test_a_stage_that_refuses_a_batch_is_asked_for_each_request():
    runner = staged(stage=Numbers(refuses_batches=True))
    assert answers(runner, texts(b"1"), texts(b"2"), texts(b"x"))[:2] == [[2], [3]]
    assert runner.runner.batches == [2]


def test_a_request_that_the_engine_refuses_fails_alone():
    runner = staged(engine=Adds(offset=True))
    given = [texts(b"1") | {"offset": np.float32([[value]])} for value in (10, -1, 20)]
    first, second, third = answers(runner, *given)
    assert (first, third) == ([12], [22])
    assert "an offset is negative" in str(second)


def test_what_the_stage_does_not_make_comes_from_the_request():
    runner = staged(engine=Adds(offset=True))
    bad, good = (texts(b"1", sample) | {"offset": np.float32([[10], [20]])} for sample in (b"x", b"2"))
    assert answers(runner, bad, good)[1] == [12, 23]


def test_without_a_batch_dimension_each_request_runs_alone():
    runner = staged(batched=False)
    assert answers(runner, texts(b"1"), texts(b"2")) == [[2], [3]]
    assert runner.runner.batches == [1, 1]


class Ragged(Numbers):
    """A stage whose rows are as long as the text, so that texts of unequal length are no batch."""

    signature = Signature((TensorSpec("text", "BYTES", (None, 1)),), (TensorSpec("pair", "FP32", (None, None)),))

    def run(self, feeds):
        lengths = {len(text) for text in feeds["text"][:, 0]}
        if len(lengths) > 1:
            raise RequestError("no batch", "the texts have different lengths", "Send them apart")
        return Rows({"pair": np.array([[float(digit) for digit in text.decode()] for text in feeds["text"][:, 0]])})


def test_requests_whose_rows_have_different_shapes_run_as_several_batches():
    runner = staged(stage=Ragged())
    assert answers(runner, texts(b"12"), texts(b"345"), texts(b"67")) == [[3], [12], [13]]
    assert runner.runner.batches == [2, 1]


class OnGpu(Numbers):
    """A stage whose rows can stay on a GPU, which an array at a made-up address stands for."""

    def run_on_device(self, feeds, kept):
        rows = self.run(feeds)
        arrays = {
            name: DeviceArray(1000, array.shape, array) if name in kept else array
            for name, array in rows.arrays.items()
        }
        return Rows(arrays, rows.failed)


class AddsOnGpu(DeviceRunner):
    """An engine on that GPU; it refuses a batch that has a row of 99."""

    def __init__(self):
        self.signature = Adds().signature
        self.seen = []

    def run(self, feeds, outputs, into=None):
        given = feeds["x"]
        self.seen.append(type(given).__name__)
        if isinstance(given, DeviceArray):
            begin = (given.address - 1000) // 8
            given = given.keep[begin : begin + given.shape[0]]
        if len(given) > 1 and (given[:, 0] == 99).any():
            raise EngineError("the engine failed", "a row is 99", "Send another")
        return [given.sum(1, keepdims=True)]


def test_what_is_decoded_on_the_gpu_stays_there():
    runner = staged(engine=AddsOnGpu(), stage=OnGpu())
    assert answers(runner, texts(b"1"), texts(b"2", b"3")) == [[2], [3, 4]]
    assert runner.runner.seen == ["DeviceArray"]
    assert answers(runner, texts(b"1"), texts(b"99", b"3"), texts(b"4"))[0::2] == [[2], [5]]  # each its own rows
    first, second = answers(runner, texts(b"x"), texts(b"5"))
    assert "is no number" in str(first)
    assert second == [6]
    assert runner.runner.seen[-1] == "ndarray"  # with a sample missing, it goes through the host


class AlsoTold(OnGpu):
    """Such a stage with an output that the engine does not take."""

    signature = Signature(
        Numbers.signature.inputs, (*Numbers.signature.outputs, TensorSpec("length", "INT64", (None,)))
    )

    def run(self, feeds):
        rows = super().run(feeds)
        return Rows({**rows.arrays, "length": np.array([len(text) for text in feeds["text"][:, 0]])}, rows.failed)


def test_what_else_such_a_stage_makes_is_answered_too():
    runner = staged(engine=AddsOnGpu(), stage=AlsoTold())
    first, second = runner.finish(runner.prepare([texts(b"1"), texts(b"22", b"333")]), ("y", "length"))
    assert (first["y"].tolist(), second["y"].tolist()) == ([[2]], [[23], [334]])
    assert (first["length"].tolist(), second["length"].tolist()) == ([1], [2, 3])
    assert runner.runner.seen == ["DeviceArray"]


class Repeats(Numbers):
    """A stage that makes another number of rows than it is given."""

    def run(self, feeds):
        return Rows({"pair": super().run(feeds).arrays["pair"].repeat(2, 0)})


def test_a_stage_that_makes_other_rows_gives_nobody_another_s_answer():
    for one in answers(staged(stage=Repeats()), texts(b"1"), texts(b"2")):
        assert '"pair" has 2 rows for 1 samples' in str(one)


class WithLengths(Numbers):
    """A stage that says more than the engine takes."""

    def run(self, feeds):
        rows = super().run(feeds)
        lengths = [[len(text)] for at, text in enumerate(feeds["text"][:, 0]) if at not in rows.failed]
        return Rows({**rows.arrays, "length": np.array(lengths)}, rows.failed)


def test_what_the_stage_makes_beside_the_engines_inputs_is_served():
    runner = staged(stage=WithLengths())
    found = runner.finish(runner.prepare([texts(b"1", b"22"), texts(b"x"), texts(b"333")]), ["y", "length"])
    assert [found[at]["length"].tolist() for at in (0, 2)] == [[[1], [2]], [[3]]]
    assert found[2]["y"].tolist() == [[334]]


class Doubles:
    """A stage after the engine; it refuses values above 100."""

    signature = Signature((TensorSpec("y", "FP32", (None, 1)),), (TensorSpec("twice", "FP32", (None, 1)),))

    def run(self, feeds):
        good = feeds["y"][:, 0] <= 100
        failed = {int(at): RequestError("too large", "above 100", "Send less") for at in np.flatnonzero(~good)}
        return Rows({"twice": feeds["y"][good] * 2}, failed)

    def close(self):
        pass


def test_a_stage_after_the_engine_fails_requests_apart_as_well():
    runner = staged(after=Doubles())
    first, second, third = answers(runner, texts(b"1"), texts(b"2", b"500"), texts(b"3"), outputs=("twice",))
    assert (first, third) == ([4], [8])
    assert "sample 1 of 2: too large" in str(second)


class Looked:
    """Names of sums."""

    sources = ("y",)

    def __call__(self, arrays):
        return np.array([[f"sum {value:.0f}"] for value in arrays["y"][:, 0]], object)

    def spec(self, outputs):
        return TensorSpec("name", "STRING", (None, 1))


def test_an_output_is_looked_up_in_another_that_nobody_asked_for():
    runner = staged(lookups={"name": Looked()})
    assert answers(runner, texts(b"1"), texts(b"2", b"3"), outputs=("name",)) == [["sum 2"], ["sum 3", "sum 4"]]


def test_run_answers_one_request_or_raises_its_error():
    runner = staged()
    assert runner.run(texts(b"1", b"2"), ["y"])[0].tolist() == [[2], [3]]
    with pytest.raises(RequestError, match="is no number"):
        runner.run(texts(b"x"), ["y"])


class Request:
    """Stands in for Triton's; remembers the response that is sent."""

    def __init__(self, *samples):
        self._array = texts(*samples)["text"]
        self.sent = None
        self.answered = threading.Event()

    def inputs(self):
        return [self]

    def name(self):
        return "text"

    def as_numpy(self):
        return self._array

    def requested_output_names(self):
        return ["y"]

    def get_response_sender(self):
        return self

    def send(self, response, flags):
        assert flags == 1
        self.sent = response
        self.answered.set()


class PbUtils:
    """Stands in for Triton's module: tensors are arrays, a response is its tensors or its error."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    class TritonError(Exception):
        INVALID_ARG = INTERNAL = 0

        def __init__(self, message, code):
            super().__init__(message)

    @staticmethod
    def Tensor(name, array):  # noqa: N802 - Triton's name
        return array

    @staticmethod
    def InferenceResponse(output_tensors=None, error=None):  # noqa: N802 - Triton's name
        return error or output_tensors


@pytest.fixture
def executor():
    made = []

    def make(runner):
        plain = Executor(PbUtils, runner, Plan(("y",), 8, False, False), Counter(), Counter())
        made.append(EachExecutor(PbUtils, plain, runner))
        return made[-1]

    yield make
    for one in made:
        one.close()


def values(response):
    return response[0][:, 0].tolist()


def test_a_lone_request_is_answered_at_once(executor):
    request = Request(b"1", b"2")
    [response] = executor(staged()).execute([request])
    assert values(response) == [2, 3]
    assert request.sent is None


def test_a_batch_is_prepared_while_the_engine_runs_another(executor):
    engine, stage = Adds(), Numbers()
    executes = executor(staged(engine, stage))
    engine.go_on.clear()
    first, second = [Request(b"1"), Request(b"2")], [Request(b"3"), Request(b"x"), Request(b"4")]
    assert executes.execute(first) is None
    assert engine.running.wait(30)
    assert executes.execute(second) is None  # returns when it is prepared
    assert stage.batches == [2, 3]
    assert engine.batches == []
    engine.go_on.set()
    for request in (*first, *second):
        assert request.answered.wait(30)
    assert [values(request.sent) for request in (*first, second[0], second[2])] == [[2], [3], [4], [5]]
    assert "is no number" in str(second[1].sent)
    assert engine.batches == [2, 2]


def test_closing_answers_what_is_in_flight(executor):
    engine = Adds()
    executes = executor(staged(engine))
    engine.go_on.clear()
    requests = [Request(b"1"), Request(b"2")]
    executes.execute(requests)
    closing = threading.Thread(target=executes.close)
    closing.start()
    engine.go_on.set()
    closing.join(30)
    assert [values(request.sent) for request in requests] == [[2], [3]]


def test_a_runner_that_breaks_fails_its_requests_and_goes_on(executor):
    runner = staged()
    executes = executor(runner)
    prepare, runner.prepare = runner.prepare, lambda _: 1 / 0
    broken = [Request(b"1"), Request(b"2")]
    executes.execute(broken)
    for request in broken:
        assert request.answered.wait(30)
        assert "ZeroDivisionError" in str(request.sent)
    runner.prepare = prepare
    assert values(executes.execute([Request(b"5")])[0]) == [6]
