"""That bytes are a state of a model's cache: they are walked through before llama.cpp sees them,
for they may come from a stranger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggext.errors import GgextError
from ggext.runtime import llama, state
from ggext.runtime.recurrent_state import read_states

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.model import Model

#: LLAMA_ROPE_TYPE_MROPE and _IMROPE
_MROPE_TYPES = (8, 40)


class StateError(GgextError):
    """A saved state cannot be used: it is damaged, of another model, or of another runtime."""


@dataclass(frozen=True)
class StateKind:
    """How a model's cache is written."""

    # Whether cells have four positions, as with M-RoPE.
    extended: bool = False
    # Whether layers keep a state in place of their tokens.
    recurrent: bool = False
    # With these: the caches of layers that attend.
    caches: int = 1


def kind_of(model: Model) -> StateKind:
    """How llama.cpp writes the caches of a model."""
    handle = model.open_handle()
    attends = not llama.lib().llama_model_is_recurrent(handle)
    return StateKind(
        extended=llama.lib().llama_model_rope_type(handle) in _MROPE_TYPES,
        recurrent=model.is_recurrent,
        caches=attends * (2 if model.n_swa else 1),
    )


def check_state(
    data: NDArray[np.uint8], places: Sequence[int], kind: StateKind = StateKind()
) -> None:
    """Walks through the bytes of ``llama_state_seq_get_data`` as llama.cpp will. Raises StateError
    for what is not the cache of these positions, each once.

    llama.cpp compares types and sizes with its own, and throws what we get as an error."""
    try:
        if kind.recurrent:
            sections, end = state.leading_sections(
                data, kind.caches, extended=kind.extended
            )
            position = read_states(data, end).position
        else:
            _, sections = state.sections(data, extended=kind.extended)
    except ValueError as error:
        raise StateError(f"the saved state has {error}") from None
    if kind.recurrent and position != max(places, default=None):
        raise StateError(
            f"the saved state is that after position {position}, not {max(places)}"
        )
    if sections:
        _check_cells(sections, places)


def check_copy(data: NDArray[np.uint8], count: int) -> None:
    """The same for the states alone, after ``count`` tokens."""
    try:
        position = read_states(data, state.HEAD_BYTES).position
    except ValueError as error:
        raise StateError(f"the saved state has a copy of {error}") from None
    if position != count - 1:
        raise StateError(
            f"the saved state has a copy after position {position}, not {count - 1}"
        )


def _check_cells(sections: Sequence[state.Section], places: Sequence[int]) -> None:
    import numpy as np

    expected = np.array(places, np.int32)
    if len(sections[0].cells) != len(expected):
        raise StateError(
            f"the saved state has {len(sections[0].cells)} cells for {len(expected)} positions"
        )
    for section in sections:
        positions = section.cells[:, 0]
        once = len(np.unique(positions)) == len(positions)
        if not (once and np.isin(positions, expected).all()):
            raise StateError("the saved state has cells that no text of its length has")
