"""M-RoPE: by which of four coordinates each pair of a head turns.

In a text the first three coordinates of a token are its position, and the fourth is 0
(``llm_graph_input_pos`` of llama.cpp). So for text only one thing matters: no pair may fall into
the fourth section, for such a pair never turns.
"""

from __future__ import annotations

from ggext.rope.capabilities import Sections

#: Four counts of pairs: time, height, width, and the one that text has not. Required by the loader.
SECTIONS = "rope.dimension_sections"


def still_pairs(
    sections: tuple[int, ...], n_pairs: int, kind: Sections
) -> tuple[int, ...]:
    """The pairs that do not turn in a text, by ``ggml_mrope_cache_init`` of the pinned llama.cpp.

    ``sections``: four counts, as the file has them. ``blocks``: the sections lie one after the
    other. ``interleaved``: pair i is of section i mod 3 while i < 3 · (count of that section), and
    of the fourth one after that.
    """
    total = sum(sections)
    if kind == "none" or total == 0:
        return ()
    first_three = sum(sections[:3])
    if kind == "blocks":
        return tuple(i for i in range(n_pairs) if i % total >= first_three)
    return tuple(
        i for i in range(n_pairs) if (sector := i % total) >= 3 * sections[sector % 3]
    )


def sections_to_write(
    published: tuple[int, ...], n_pairs: int, kind: Sections
) -> tuple[int, int, int, int]:
    """The sections for which every pair turns in a text, the published ones wherever they do.

    Qwen3-VL publishes [24, 20, 20] for 64 interleaved pairs, and transformers turns pairs 61 and 62
    by the time coordinate. llama.cpp would leave them still; with [22, 21, 21] it turns them by the
    height and the width, which for text are the same position. In an image these two pairs differ
    from transformers either way.
    """
    time, height, width = published[:3]
    written = (time, height, width, 0)
    if not still_pairs(written, n_pairs, kind):
        return written
    return (-(-n_pairs // 3), -(-(n_pairs - 1) // 3), -(-(n_pairs - 2) // 3), 0)
