"""What a framework says, short enough for a message."""

from __future__ import annotations

__all__ = ["first_line"]

_NODE = "[[{{node"


def first_line(error: BaseException) -> str:
    """A framework's message without the trace and the advice that it adds.

    Of what a graph met when it ran, TensorFlow first says where, in several lines; the reason stands before the node.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        reason = line.partition(_NODE)[0].strip()
        if reason and (_NODE in line or following.startswith(_NODE)):
            return reason[:300]
    return (lines[0] if lines else type(error).__name__)[:300]
