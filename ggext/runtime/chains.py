"""How deep a recursion over names that lead to one another can get."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def longest_chain(
    leads_to: Mapping[str, Collection[str]], weights: Mapping[str, int]
) -> int:
    """A bound on the sum of weights over a walk that visits no name twice.

    Names that lead to each other count all (Tarjan's strongly connected components, without
    recursion), then the heaviest way through the components.
    """
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    length: dict[str, int] = {}  # of a chain from a name whose component is whole
    stack: list[str] = []
    for start in leads_to:
        waiting = [] if start in order else [(start, iter(leads_to[start]))]
        if waiting:
            order[start] = low[start] = len(order)
            stack.append(start)
        while waiting:
            name, names = waiting[-1]
            following = next(names, None)
            if following is None:
                waiting.pop()
                if waiting:
                    above = waiting[-1][0]
                    low[above] = min(low[above], low[name])
                if low[name] == order[name]:
                    _close(name, stack, leads_to, weights, length)
            elif following not in order:
                order[following] = low[following] = len(order)
                stack.append(following)
                waiting.append((following, iter(leads_to.get(following, ()))))
            elif following not in length:
                low[name] = min(low[name], order[following])
    return max(length.values(), default=0)


def _close(
    name: str,
    stack: list[str],
    leads_to: Mapping[str, Collection[str]],
    weights: Mapping[str, int],
    length: dict[str, int],
) -> None:
    """Takes a component from the stack and says how long a chain from it can be."""
    component = [stack.pop()]
    while component[-1] != name:
        component.append(stack.pop())
    beyond = (
        length.get(other, 0)
        for member in component
        for other in leads_to.get(member, ())
    )
    longest = sum(weights.get(member, 1) for member in component) + max(
        beyond, default=0
    )
    length.update(dict.fromkeys(component, longest))
