"""A pipeline drawn: as Mermaid text, or as SVG."""

from __future__ import annotations

from xml.sax.saxutils import escape

from unified_backend.ensembles.wiring import Tensor, Wired

__all__ = ["to_mermaid", "to_svg"]

_WIDTH, _BOX, _GAP, _LINE, _MARGIN = 720, 46, 26, 17, 24  # pixels
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1b1f24 }
  .kind, .tensor { font-size: 12px; fill: #57606a }
  .tensor { font-family: ui-monospace, monospace }
  rect { fill: #f6f8fa; stroke: #57606a; rx: 6 }
  rect.model { fill: #ddf4ff; stroke: #0969da }
  path { fill: none; stroke: #57606a; marker-end: url(#arrow) }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .kind, .tensor { fill: #9198a1 } rect { fill: #161b22; stroke: #9198a1 }
    rect.model { fill: #0c2d6b; stroke: #58a6ff } path { stroke: #9198a1 } #arrow path { fill: #9198a1 }
  }
"""


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
            for line, text in enumerate(tensors):
                parts.append(
                    f'<text class="tensor" x="{_MARGIN + 76}" y="{y + 18 + line * _LINE}">{escape(text)}</text>'
                )
            y += height
        style = ' class="model"' if is_model else ""
        parts.append(f'<rect{style} x="{_MARGIN}" y="{y}" width="{_WIDTH - 2 * _MARGIN}" height="{_BOX}"/>')
        parts.append(f'<text x="{_MARGIN + 14}" y="{y + 28}">{escape(title)}</text>')
        parts.append(
            f'<text class="kind" x="{_WIDTH - _MARGIN - 14}" y="{y + 28}" text-anchor="end">{escape(kind)}</text>'
        )
        y += _BOX
    height = y + _MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="The pipeline {escape(definition.name)}">'
    )
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", arrow, *parts, "</svg>"]) + "\n"


def _arrow_text(name: str, tensor: Tensor) -> str:
    return f"{_label(name, tensor)}   from {tensor.giver}"


def _label(name: str, tensor: Tensor) -> str:
    """`boxes FP32 [-1, 4]`."""
    return f"{name} {tensor.spec.triton.removeprefix('TYPE_')} {tensor.spec.dims}"


def _safe(text: str) -> str:
    """Without what Mermaid would read as its own."""
    return text.replace("&", "&amp;").replace('"', "&quot;")
