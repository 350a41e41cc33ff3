"""Hypothesis strategies that damage what json files and records hold."""

import copy
import math

from hypothesis import strategies as st

# What stands where something else should, in files that people and programs write.
WRONG = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 16, 10**5, 2 * 10**9, -(2**63), 10**400),
    *(0.0, 1.5, -0.5, 1e30, math.nan, math.inf, -math.inf),
    *("", "2", "x", "None", "../x", "a\0b", "\ud800", "mixed_bfloat16"),
    *([], [1], [None], {}, {"a": 1}, [[[[[]]]]]),
]
VALUES = (
    st.sampled_from(WRONG).map(copy.deepcopy)
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
)


def places(value, path=()):
    """Yields the path of every value inside a JSON value."""
    entries = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


@st.composite
def mutated(draw, value):
    """A JSON object with one to three entries replaced, removed or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        found = list(places(value))
        if not found:
            break
        *path, key = draw(st.sampled_from(found))
        parent = value
        for step in path:
            parent = parent[step]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if how == "replace":
            parent[key] = draw(VALUES)
        elif how == "remove":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=4))] = parent.pop(key)
        else:
            parent.append(draw(VALUES))
    return value
