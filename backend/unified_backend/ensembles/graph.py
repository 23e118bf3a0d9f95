"""A pipeline drawn: as Mermaid text, or as SVG."""

from __future__ import annotations

from unified_backend.drawing.svg import document, text
from unified_backend.ensembles.wiring import Tensor, Wired

__all__ = ["to_mermaid", "to_svg"]

_WIDTH, _BOX, _GAP, _LINE, _MARGIN = 720, 46, 26, 17, 24  # pixels


def to_mermaid(wired: Wired) -> str:
    """The pipeline as a Mermaid flowchart, tensors with their types and shapes on the arrows."""
    lines = ["flowchart TD", '  request(["request"])']
    nodes = {"the request": "request"}
    for step in wired.definition.steps:
        node = nodes[str(step)] = f"step{step.index + 1}"
        title = _safe(step.stage.name if step.stage else step.name)
        lines.append(f'  {node}["{title}"]' if step.stage else f'  {node}[["{title}"]]')
    lines.append('  response(["response"])')
    for step in wired.definition.steps:
        for name in step.inputs.values():
            tensor = wired.tensors[name]
            lines.append(f'  {nodes[tensor.giver]} -- "{_safe(_label(name, tensor))}" --> {nodes[str(step)]}')
    for output, name in wired.definition.outputs.items():
        tensor = wired.tensors[name]
        lines.append(f'  {nodes[tensor.giver]} -- "{_safe(_label(output, tensor))}" --> response')
    return "\n".join(lines) + "\n"


def to_svg(wired: Wired) -> str:
    """The pipeline as an SVG picture: the steps from top to bottom, what each takes above it, with its giver."""
    parts: list[str] = []
    y = _MARGIN
    definition = wired.definition
    rows = [("request", definition.name, False, list[str]())]
    for step in definition.steps:
        title = step.stage.name if step.stage else step.name
        taken = [_arrow_text(name, wired.tensors[name]) for name in step.inputs.values()]
        rows.append(("stage" if step.stage else "model", title, not step.stage, taken))
    given = [_arrow_text(output, wired.tensors[name]) for output, name in definition.outputs.items()]
    rows.append(("response", definition.name, False, given))
    for number, (kind, title, is_model, tensors) in enumerate(rows):
        if number:
            height = max(len(tensors) * _LINE, _LINE) + _GAP
            parts.append(f'<path d="M{_MARGIN + 60} {y} v{height - 2}"/>')
            for line, tensor in enumerate(tensors):
                parts.append(
                    f'<text class="tensor" x="{_MARGIN + 76}" y="{y + 18 + line * _LINE}">{text(tensor)}</text>'
                )
            y += height
        style = ' class="model"' if is_model else ""
        parts.append(f'<rect{style} x="{_MARGIN}" y="{y}" width="{_WIDTH - 2 * _MARGIN}" height="{_BOX}"/>')
        parts.append(f'<text x="{_MARGIN + 14}" y="{y + 28}">{text(title)}</text>')
        parts.append(
            f'<text class="kind" x="{_WIDTH - _MARGIN - 14}" y="{y + 28}" text-anchor="end">{text(kind)}</text>'
        )
        y += _BOX
    height = y + _MARGIN
    return document(f"The pipeline {definition.name}", _WIDTH, height, parts)


def _arrow_text(name: str, tensor: Tensor) -> str:
    return f"{_label(name, tensor)}   from {tensor.giver}"


def _label(name: str, tensor: Tensor) -> str:
    """`boxes FP32 [-1, 4]`."""
    return f"{name} {tensor.spec.triton.removeprefix('TYPE_')} {tensor.spec.dims}"


def _safe(text: str) -> str:
    """Without what Mermaid would read as its own."""
    return text.replace("&", "&amp;").replace('"', "&quot;")
