"""For which programs a file is ready, and what to switch off in the others.

What the programs do, with their versions, is in docs/use-it-in.md.
"""

from __future__ import annotations

from ggext.rope.compare import Comparison

#: Those that do not move cached tokens unless they are asked to.
_STILL = "llama.cpp, llama-server, llama-cpp-python, ggext"


def ready_for(
    *,
    shift_safe: bool,
    folded: bool = False,
    can_be_folded: bool = False,
    elsewhere: Comparison | None = None,
) -> list[str]:
    """Lines of at most 80 columns. ``shift_safe``: the cached keys survive a rolled context;
    ``folded``: because the gain is in the query weights; ``can_be_folded``: they would if it were.
    ``elsewhere``: how far other programs than ggext are from what was asked for, ``None`` where
    they do the same."""
    if elsewhere is not None:
        error = f"{elsewhere.frequency_error:.2g}"
        return [
            f"ready for: ggext; in other programs frequencies are off by up to {error}"
        ]
    lines = [f"ready for: {_STILL}"]
    if shift_safe:
        how = " (folded)" if folded else ""
        return [
            *lines,
            f"           Ollama and KoboldCpp roll their context: safe{how}",
        ]
    lines += [
        "not for:   programs that roll a full context (Ollama, KoboldCpp, LM Studio's",
        "           rolling window): switch that off there, see docs/use-it-in.md",
    ]
    if can_be_folded:
        lines.append("           or write it with --encoding folded, which is safe")
    return lines
