"""The nodes of a graph in groups that a picture has room for: by scope, and in a chain where names have none.

A group is a run of nodes in one topological order, so that no two groups can each need the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

__all__ = ["Group", "Scope", "common_scope", "folded", "ordered"]

Scope = tuple[str, ...]
Group = tuple[Scope, list[int]]  # what the scopes of its nodes begin with, and the nodes

_FEW = 12  # groups below which a whole level of scopes tells too little


def ordered(takers: Sequence[Sequence[int]], scopes: Sequence[Scope]) -> list[int]:
    """Nodes after all that they take from, chains and scopes together as far as that goes.

    Args:
        takers: of each node, those that take what it gives.
        scopes: of each node.
    """
    waiting = [0] * len(takers)
    for taken in takers:
        for node in taken:
            waiting[node] += 1
    ready = [node for node in reversed(range(len(takers))) if not waiting[node]]
    found: list[int] = []
    while ready:
        last = scopes[found[-1]] if found else ()
        # The newest goes on with the chain; one of the same scope comes first, if it is among the newest.
        near = next((place for place in range(1, min(len(ready), 8) + 1) if scopes[ready[-place]] == last), 1)
        node = ready.pop(-near)
        found.append(node)
        for taker in sorted(takers[node], reverse=True):
            waiting[taker] -= 1
            if not waiting[taker]:
                ready.append(taker)
    return [*found, *sorted(set(range(len(takers))) - set(found))]  # in a ring, which no engine takes, none is first


def folded(takers: Sequence[Sequence[int]], scopes: Sequence[Scope], most: int) -> list[Group]:
    """The nodes in at most so many groups, in topological order.

    The deepest level of scopes that is few enough is taken as it is; where the next level up says next to nothing, or
    there are no scopes, neighbours are joined: those of the deepest common scope first, then those that follow one
    another, and the smallest.
    """
    order = ordered(takers, scopes)
    if len(order) <= most:
        return [(scopes[node], [node]) for node in order]
    finer: list[Group] = [(scopes[node], [node]) for node in order]
    for depth in range(max(map(len, scopes), default=0), -1, -1):
        runs = _runs(order, scopes, depth)
        if len(runs) <= most:
            return runs if len(runs) >= _FEW else _joined(finer, takers, most)
        finer = runs
    return _joined(finer, takers, most)


def _runs(order: Sequence[int], scopes: Sequence[Scope], depth: int) -> list[Group]:
    """Neighbours whose scopes are the same down to a depth; those without a scope stay alone while there is any."""
    runs: list[Group] = []
    for node in order:
        scope = scopes[node][:depth]
        if runs and scope and runs[-1][0] == scope:
            runs[-1][1].append(node)
        else:
            runs.append((scope, [node]))
    return runs


def _joined(groups: Sequence[Group], takers: Sequence[Sequence[int]], most: int) -> list[Group]:
    """Neighbours joined, the best two first, until there are few enough."""
    scopes = {number: scope for number, (scope, _) in enumerate(groups)}
    members = {number: list(nodes) for number, (_, nodes) in enumerate(groups)}
    after = {number: number + 1 for number in range(len(groups) - 1)}
    before = {later: number for number, later in after.items()}

    def price(number: int) -> tuple[int, bool, int, int, int]:
        later = after[number]
        inside = set(members[later])
        follows = any(taker in inside for node in members[number] for taker in takers[node])
        size = len(members[number]) + len(members[later])
        return (-len(common_scope(scopes[number], scopes[later])), not follows, size, number, later)

    heap = [price(number) for number in after]
    heapq.heapify(heap)
    while len(members) > most:
        offer = heapq.heappop(heap)
        number, later = offer[3:]
        if number not in members or after.get(number) != later or offer != price(number):
            continue  # one of the two has grown since, and that pair has its own offer
        members[number] += members.pop(later)
        scopes[number] = common_scope(scopes[number], scopes[later])
        if (beyond := after.pop(later, None)) is None:
            del after[number]
        else:
            after[number], before[beyond] = beyond, number
            heapq.heappush(heap, price(number))
        if number in before:
            heapq.heappush(heap, price(before[number]))
    return [(scopes[number], nodes) for number, nodes in members.items()]


def common_scope(one: Scope, other: Scope) -> Scope:
    """What two scopes begin with."""
    for depth, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return one[:depth]
    return min(one, other, key=len)
