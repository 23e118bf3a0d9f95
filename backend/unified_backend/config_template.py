"""The config.pbtxt that a new model begins with: one line that counts, and in comments all that may be set."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from unified_backend.batching import Batching, Verdict
from unified_backend.completion import complete
from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats.description import Description
from unified_backend.formats.parameters import refuse_unused
from unified_backend.forms.reference import ENGINES
from unified_backend.parameter_help import parameter_help
from unified_backend.pbtxt import to_pbtxt
from unified_backend.settings import read_settings
from unified_backend.tensors import Signature

__all__ = ["config_template"]

_WIDTH = 118
_ENGINE = "onnxruntime"  # what most models are served by: the example of `engine`, where it takes the model
# The parameters that people set most, each with a value to begin with; what they do, `Settings` says.
_OFFERED = {
    "engine": _ENGINE,
    "precision": "fp16",
    "graph_optimization": "extended",
    "autotune": "true",
    "build": "background",
    "batching": "concatenate",
    "warm_up": "1,8",
    "intra_op_thread_count": "2",
    "preprocess": "imagenet",
    "postprocess": "softmax | topk(5)",
    "verify": "warn",
    "tolerance": "0.01",
    "signature": "serving_default",
}


def config_template(
    name: str,
    form: str,
    description: Description,
    batching: Batching,
    max_batch_size: int,
    parameters: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """The text of config.pbtxt. A `#` with no space behind it is in front of a setting, one with a space of words.

    Args:
        name: the model's.
        form: its format, a key of `formats.FORMATS`.
        description: what its file says of itself.
        batching: what its shapes say.
        max_batch_size: that a batchable model gets.
        parameters: set from the beginning.
        notes: what whoever reads it should know.
    """
    head = (
        f"Model {name}, format {form}. Written by `triton-unified init`.",
        "The one line that is needed names the backend: all else is completed from the model when it is loaded. "
        "Lines that begin with `#` and no space are settings: take the `#` away to set one. "
        "`triton-unified check` on this folder shows the whole config, and what became of the model.",
        *notes,
    )
    return "\n".join(
        (
            *(line for text in head for line in _comment(text)),
            "",
            'backend: "unified"',
            *(_line(*parameter) for parameter in parameters.items()),
            "",
            *_tensors(name, description, batching, max_batch_size),
            "",
            *_comment(
                "Requests that wait are answered together, up to max_batch_size; with a delay the first of them "
                "waits for others, in microseconds. Without this line: no delay, where the model can be batched."
            ),
            "#dynamic_batching { max_queue_delay_microseconds: 1000 }",
            "",
            *_comment(
                "How many copies of the model answer side by side, and where (KIND_CPU, KIND_GPU). Without this line: "
                "one, on each GPU if there are any. The cores are divided by the copies."
            ),
            "#instance_group [ { count: 2 kind: KIND_CPU } ]",
            "",
            *_comment("Parameters, each with what it does."),
            *(line for offered in _OFFERED if offered not in parameters for line in _parameter(offered, form)),
            "",
        )
    )


def _tensors(name: str, description: Description, batching: Batching, max_batch_size: int) -> Iterator[str]:
    """The completed inputs and outputs, and what of them is known only later."""
    signature = Signature(description.inputs, description.outputs)
    hidden = _untold(description)
    completed, _ = complete(name, {}, signature, batching, max_batch_size)
    if batching.verdict is Verdict.IMPOSSIBLE:
        yield from _comment(f"By its file the model is not batched: {batching.reason}. A load may see more.")
    else:
        yield from _comment("By its shapes the model can be batched, which a load proves by a run.")
    yield from _comment("What it takes and gives. Write a tensor to narrow its sizes, or to serve fewer outputs.")
    if description.unstated:
        yield from _comment(
            f"Its file does not tell type and shape of {', '.join(description.unstated)}: write them, or it does not "
            "load; -1 is any size."
        )
    if hidden:
        yield from _comment(f"Its file does not tell all of {', '.join(hidden)}: a load finds out.")
    if not description.outputs:
        yield from _comment("What it gives, its framework knows: the conversion, at the first load, finds the outputs.")
    yield f"#max_batch_size: {completed['max_batch_size']}"
    for side in ("input", "output"):
        for row in completed[side]:
            told = {key: value for key, value in row.items() if key not in hidden.get(row["name"], ())}
            yield f"#{to_pbtxt({side: [told]}, one_line=True)}"


def _untold(description: Description) -> dict[str, set[str]]:
    """Fields of tensors that the file does not tell, which would be guesses."""
    hidden: dict[str, set[str]] = {}
    for spec in (*description.inputs, *description.outputs):
        fields = {"dims", "reshape"} if spec.shape is None else set()
        if spec.name in description.untyped and spec.name not in description.unstated:
            fields.add("data_type")
        if fields:
            hidden[spec.name] = fields
    return hidden


def _parameter(name: str, form: str) -> Iterator[str]:
    """A parameter in a comment, unless the model's format has not got it."""
    value = _OFFERED[name]
    if name == "engine" and not {form, "onnx"} & ENGINES[value].accepts:
        value = next(engine.name for engine in ENGINES.values() if form in engine.accepts)
    try:
        refuse_unused(form, read_settings(form, {name: value}, tuple(ENGINES)), form)
    except (ConfigError, SourceError):
        return
    said = parameter_help(tuple(ENGINES))[name]
    values = said.values
    if name == "engine":
        takers = [engine.name for engine in ENGINES.values() if {form, "onnx"} & engine.accepts]
        values = ", ".join(f"`{taker}`" for taker in ("auto", *takers))
    default = f" Default: {said.default}." if said.default else ""
    yield from _comment(f"{name}: {said.what.rstrip('.')}. Values: {values}.{default}")
    yield f"#{_line(name, value)}"


def _line(name: str, value: str) -> str:
    return to_pbtxt({"parameters": {name: {"string_value": value}}}, one_line=True)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
