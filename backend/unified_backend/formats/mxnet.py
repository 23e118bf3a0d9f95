"""MXNet's models: a graph in JSON (`NAME-symbol.json`), and the parameters beside it (`NAME-0000.params`)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, renamed
from unified_backend.formats.mxnet_params import is_params, shapes_of
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["MxNet"]

_MOST_GRAPH = 64 * 2**20  # bytes; ResNet-152 has 0.3 MB
_ENDS = 64 * 1024  # bytes at either end that tell a graph from other JSON
_EPOCH = re.compile(r"(?P<prefix>.*)-(?P<epoch>\d{4,})\.params")
_PARAMETERS = re.compile(r".*_(weight|bias|gamma|beta|parameters|(moving|running)_(mean|var))")
# Heads for training, whose further inputs are the labels.
_LOSSES = re.compile(r"(Softmax|SVM|(Linear|Logistic|MAE)Regression)Output|Softmax|softmax_cross_entropy")
# What leaves the number of channels, or of features, as it is.
_ALONG = re.compile(r"_.*_scalar|BatchNorm|Cast|_copy|identity|BlockGrad|Activation|relu|clip|Pad|Dropout|elemwise_\w+")


class MxNet:
    """The MXNet format: two files."""

    name = "mxnet"

    def detect(self, path: Path) -> bool:
        """Whether the file is a graph of MXNet's in JSON.

        Raises:
            SourceError: it begins as one and ends too early.
        """
        with path.open("rb") as file:
            head = file.read(_ENDS)
            if not re.match(rb'\s*\{\s*"nodes"\s*:\s*\[', head) or b'"op"' not in head:
                return False
            file.seek(max(0, path.stat().st_size - _ENDS))
            tail = file.read()
        if b'"heads"' not in tail or not tail.rstrip().endswith(b"}"):
            raise SourceError(
                f"{path.name} is a truncated MXNet graph", "it ends before its heads", "Copy it again, completely"
            )
        return b'"arg_nodes"' in tail or b'"arg_nodes"' in head

    def companions(self, path: Path) -> list[str]:
        """The file of parameters: that of the graph's name and the highest epoch, or the only one there.

        Raises:
            SourceError: there is none, or several that are another graph's.
        """
        files = [file for file in sorted(path.parent.iterdir()) if file.is_file() and is_params(file)]
        prefix = path.name.removesuffix(".json").removesuffix("-symbol")
        own = {
            int(match["epoch"]): file.name
            for file in files
            if (match := _EPOCH.fullmatch(file.name)) and match["prefix"] == prefix
        }
        if own:
            return [own[max(own)]]
        if len(files) == 1:
            return [files[0].name]
        there = f"the folder holds {', '.join(file.name for file in files)}" if files else "the folder holds none"
        raise SourceError(
            f"{path.name} lacks its parameters", there, f"Put {prefix}-0000.params beside it, and no other graph's"
        )

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the graph and the parameters say; the inputs' shapes as far as the first layers' weights tell them.

        Raises:
            SourceError: one of the files is damaged, or a parameter is missing.
            ConfigError: the parameter `names` names what the model has not got.
        """
        (weights,) = self.companions(path)
        shapes = shapes_of(path.with_name(weights))
        try:
            graph = _Graph(_parsed(path))
            inputs = graph.inputs(shapes)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise SourceError(
                f"{path.name} is an MXNet graph that cannot be read",
                f"{type(error).__name__}: {error}",
                "Save it again: net.export(NAME), or module.save_checkpoint(NAME, 0)",
            ) from None
        if missing := [name for name in inputs if _PARAMETERS.fullmatch(name)]:
            raise SourceError(
                f"{label}: {weights} lacks {', '.join(missing[:8])}",
                "the graph takes it, and its name is that of a parameter",
                "Copy the parameters that were saved with this graph",
            )
        if not inputs:
            raise SourceError(f"{label}: the graph has no input", "nothing can be asked of it", "Export another one")
        likely = {name: shape for name in inputs if (shape := graph.shape(name, shapes))}
        stated = {} if graph.fixes_sizes() else likely
        specs = tuple(TensorSpec(name, "FP32", stated.get(name)) for name in inputs)
        notes = (f"parameters of {weights}",)
        job = {"weights": weights, "labels": graph.labels(shapes)}
        facts = {**graph.facts, "parameters": len(shapes)}
        described = Description(specs, (), {}, job, facts, notes, tuple(inputs), likely=likely)
        return renamed(described, settings.names, label)


def _parsed(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_GRAPH:
        raise SourceError(f"{path.name} is no graph", "it is larger than any", "Save the model again")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path.name} is a damaged MXNet graph", str(error), "Copy it again, completely") from None
    return dict(value)


class _Graph:
    """The nodes of a graph, by their numbers."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        nodes = value["nodes"]
        self._names = [str(node["name"]) for node in nodes]
        self._ops = [str(node["op"]) for node in nodes]
        # `attr`, and before that `param`, until MXNet 1.0.
        self._attrs = [dict(node.get("attrs") or node.get("param") or node.get("attr") or {}) for node in nodes]
        self._sources = [[int(entry[0]) for entry in node["inputs"]] for node in nodes]
        if any(source >= number for number, sources in enumerate(self._sources) for source in sources):
            raise TypeError("a node takes what is computed after it")
        self._heads = [int(entry[0]) for entry in value["heads"]]
        version = (value.get("attrs") or {}).get("mxnet_version")
        operators = Counter(op for op in self._ops if op != "null")
        self.facts = {
            "mxnet": version[-1] if isinstance(version, list) else None,
            "heads": [self._names[number] for number in self._heads],
            "operators": dict(operators.most_common()),
        }

    def inputs(self, parameters: Mapping[str, object]) -> list[str]:
        """Names of what is fed: variables that no parameter is for, labels left out."""
        labels = self.labels(parameters)
        return [name for name in self._variables() if name not in parameters and name not in labels]

    def labels(self, parameters: Mapping[str, object]) -> list[str]:
        """Names of variables that only a loss takes."""
        return [
            name
            for name in self._variables()
            if name not in parameters
            and (takers := list(self._takers(self._names.index(name))))
            and all(_LOSSES.fullmatch(self._ops[taker]) and place > 0 for taker, place in takers)
        ]

    def shape(self, name: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int | None, ...] | None:
        """What the weights of the first layers tell of an input's shape; None if nothing."""
        waiting = [self._names.index(name)]
        for number in waiting:
            for taker, place in self._takers(number):
                op, attrs = self._ops[taker], self._attrs[taker]
                weights = [shapes.get(self._names[source], ()) for source in self._sources[taker]]
                if place == 0 and op == "Convolution" and len(weights) > 1 and len(weights[1]) > 2:
                    if str(attrs.get("layout", "None")) in ("None", "NCW", "NCHW", "NCDHW"):
                        channels = weights[1][1] * int(attrs.get("num_group", 1))
                        return (None, channels, *(None for _ in weights[1][2:]))
                elif place == 0 and op == "FullyConnected" and len(weights) > 1 and len(weights[1]) == 2:
                    return (None, weights[1][1]) if number == waiting[0] else None
                elif _ALONG.fullmatch(op) and taker not in waiting:
                    waiting.append(taker)
        return None

    def fixes_sizes(self) -> bool:
        """Whether height and width are likely those of training: a layer takes all places, and none averages them."""
        pooled = any(str(attrs.get("global_pool")) in ("True", "1") for attrs in self._attrs)
        return "Convolution" in self._ops and "FullyConnected" in self._ops and not pooled

    def _variables(self) -> list[str]:
        """Names of the variables that the heads depend on."""
        seen = set(self._heads)
        for number in range(len(self._names) - 1, -1, -1):
            if number in seen:
                seen.update(self._sources[number])
        return [self._names[number] for number in sorted(seen) if self._ops[number] == "null"]

    def _takers(self, number: int) -> Iterator[tuple[int, int]]:
        """The nodes that take another one's output, each with the place of the input."""
        for taker, sources in enumerate(self._sources):
            yield from ((taker, place) for place, source in enumerate(sources) if source == number)
