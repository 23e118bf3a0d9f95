"""The fragment for recognisers of text and speech: greedy CTC decoding."""

from __future__ import annotations

import numpy as np

from unified_backend.stages.fragments.graph import Graph
from unified_backend.stages.fragments.labels import LookUp, characters, read_charset
from unified_backend.stages.fragments.options import Options

__all__ = ["ctc_greedy"]

_METADATA = "metadata:"


def ctc_greedy(graph: Graph, options: Options) -> list[LookUp]:
    """`ctc_greedy(charset=FILE|"metadata:KEY", blank=0, of=NAME)`: the most likely class of each step.

    Repeats are merged and blanks left out (Graves et al., 2006, section 3.2): `[N, T, C]` becomes `indices [N, T]`
    INT64, -1 behind the last, `lengths [N, 1]` INT64 and `confidence [N, 1]`, the mean of the kept steps' largest
    values. With a charset there is an output `text [N, 1]`. A charset has a character a line; the blank is put in, and
    a space behind the last, where the model has a class for it.
    """
    charset = options.text("charset", None)
    blank = options.count("blank", 0, low=0)
    spec = options.output(list(graph.outputs.values()))
    if not spec.shape or len(spec.shape) != 3:
        raise options.wrong(f"{spec.name} is {spec.dims}", "Steps of classes have the shape [N, T, C]")
    batch, steps, classes = spec.shape
    if isinstance(classes, int) and blank >= classes:
        raise options.wrong(f"blank is {blank}, and there are {classes} classes", "Write its index")
    value, index = graph.node("TopK", graph.tensor(spec.name), graph.constant([1]), outputs=2, axis=-1)
    value, index = (graph.node("Squeeze", one, graph.constant([2])) for one in (value, index))
    # Each step beside the one before it; before the first stands a class that is none.
    before = graph.node("Pad", index, graph.constant([0, 1, 0, 0]), graph.constant(-1))
    before = graph.node("Slice", before, *(graph.constant([one]) for one in (0, -1, 1)))
    keep = graph.node(
        "And",
        graph.node("Not", graph.node("Equal", index, before)),
        graph.node("Not", graph.node("Equal", index, graph.constant(blank))),
    )
    kept = graph.node("Cast", keep, to=7)
    count = graph.node("ReduceSum", kept, graph.constant([1]), keepdims=1)
    # A step that is kept goes to the place that as many before it leave free, the others to one behind the last.
    place = graph.node("Sub", graph.node("CumSum", kept, graph.constant(1)), graph.constant(1))
    width = graph.node("Slice", graph.node("Shape", index), *(graph.constant([one]) for one in (1, 2, 0)))
    place = graph.node("Where", keep, place, width)
    empty = graph.node(
        "Pad", graph.node("Mul", index, graph.constant(0)), graph.constant([0, 0, 0, 1]), graph.constant(0)
    )
    empty = graph.node("Sub", empty, graph.constant(1))
    packed = graph.node("ScatterElements", empty, place, index, axis=1)
    packed = graph.node("Slice", packed, *(graph.constant([one]) for one in (0, -1, 1)))
    wide = graph.node("Cast", value, to=1)
    total = graph.node(
        "ReduceSum", graph.node("Mul", wide, graph.node("Cast", keep, to=1)), graph.constant([1]), keepdims=1
    )
    some = graph.node("Max", graph.node("Cast", count, to=1), graph.constant(1.0, np.float32))
    names = graph.replace(
        [spec.name],
        {
            "indices": (packed, "INT64", (batch, steps)),
            "lengths": (count, "INT64", (batch, 1)),
            "confidence": (graph.node("Div", total, some), "FP32", (batch, 1)),
        },
    )
    if charset is None:
        return []
    found = _characters(graph, options, charset, blank, classes)
    return [LookUp("text", (names[0],), "text", found, _number(classes), blank)]


def _number(classes: int | str | None) -> int | None:
    return classes if isinstance(classes, int) else None


def _characters(graph: Graph, options: Options, charset: str, blank: int, classes: int | str | None) -> tuple[str, ...]:
    """The character of each class.

    Raises:
        ConfigError: there is no such file or metadata, or it has not as many characters as the model classes.
    """
    if charset.startswith(_METADATA):
        key = charset.removeprefix(_METADATA)
        entries = {entry.key: entry.value for entry in graph.model.metadata_props}
        if key not in entries:
            raise options.wrong(
                f"the model has no metadata {key}; it has {', '.join(entries) or 'none'}", "Name a file in its place"
            )
        given = tuple(entries[key].removesuffix("\n").split("\n"))
    else:
        path = options.file("charset")
        assert path
        given = read_charset(path, options)
    return characters(given, blank, classes, options)
