"""Which layers of a model attend to a window, as llama.cpp's loaders decide it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggext.llama_cpp_facts.compressed import compress_ratios

WINDOW = "attention.sliding_window"
PATTERN = "attention.sliding_window_pattern"
#: How many of the last layers take the keys and values of earlier ones.
SHARED_LAYERS = "attention.shared_kv_layers"


@dataclass(frozen=True)
class SlidingRule:
    """``load_arch_hparams`` of one architecture, as far as windows go."""

    # every so many layers one attends to the whole context; 0: the file lists the layers
    period: int
    # the whole one is the first of a period instead of the last
    whole_first: bool = False
    # the window where the file says none, in tokens; 0: then there is none
    default_window: int = 0
    # only files of so many layers have a window, whatever they say; 0: all files
    depth: int = 0
    # some layer must slide, whether the file says a window or not: llama.cpp asserts it
    always: bool = False
    # those slide that have no compressed tokens to attend to (``compressed.compress_ratios``)
    by_ratio: bool = False


#: The architectures some of whose layers see a window (``load_swa_pattern``).
SLIDING = {
    "afmoe": SlidingRule(4),
    "cohere2": SlidingRule(4, always=True),
    "cohere2moe": SlidingRule(4, whole_first=True),
    "deepseek4": SlidingRule(0, by_ratio=True),
    "exaone-moe": SlidingRule(4),
    "exaone4": SlidingRule(4, default_window=4096, depth=64),
    "gemma2": SlidingRule(2, default_window=4096, always=True),
    "gemma3": SlidingRule(6),
    "gemma4": SlidingRule(0, always=True),
    "gpt-oss": SlidingRule(2, always=True),
    "granite_swa": SlidingRule(0, always=True),
    "laguna": SlidingRule(4, whole_first=True),
    "llama4": SlidingRule(4, default_window=8192),
    "maple": SlidingRule(0, always=True),
    "mellum": SlidingRule(4),
    "mimo2": SlidingRule(0, always=True),
    "muse-glimmer": SlidingRule(4, always=True),
    "olmo2": SlidingRule(4),
    "plamo3": SlidingRule(8),
    "smallthinker": SlidingRule(4, whole_first=True),
    "spark2_5": SlidingRule(0),
    "step35": SlidingRule(0, always=True),
}

#: Whose windows begin again at each multiple of their size (``LLAMA_SWA_TYPE_CHUNKED``).
CHUNKED = frozenset({"llama4"})


def must_be_whole(arch: str, slides: Sequence[bool]) -> str | None:
    """Why small windows cannot follow tokens that move; None: they can. ``slides``: for each layer,
    whether it does."""
    if arch in CHUNKED:
        return "begin again at each multiple of their size"
    if not any(slides):
        return "are of layers that ggext does not know"
    if all(slides):
        return "are those of all layers"
    return None


def window_of(arch: str, keys: Mapping[str, Any], layers: int) -> Any:
    """Tokens of the window as the file or its architecture says, unchecked; 0: no layer slides."""
    rule = SLIDING.get(arch)
    if rule is None or (rule.depth and rule.depth != layers):
        return 0
    return keys.get(WINDOW, rule.default_window)


def has_windows(arch: str, keys: Mapping[str, Any]) -> bool:
    """Whether a model of this depth has windows where its file says one; yes for an architecture
    that is not known here."""
    rule = SLIDING.get(arch)
    return rule is None or rule.depth in (0, keys.get("block_count"))


def layers_with_windows(arch: str, keys: Mapping[str, Any], layers: int) -> list[bool]:
    """For each of ``layers``, whether it slides; none does in a file without a window. Raises
    ValueError as `sliding_layers`."""
    if not window_of(arch, keys, layers):
        return [False] * layers
    return sliding_layers(arch, keys, layers)


def sliding_layers(arch: str, keys: Mapping[str, Any], layers: int) -> list[bool]:
    """For each of ``layers``, whether it slides in a file with a window.

    Raises ValueError for a pattern that is neither a number nor a list of ``layers`` values.
    """
    rule = SLIDING[arch]
    if rule.by_ratio:
        return [ratio == 0 for ratio in compress_ratios(keys, layers)]
    pattern = keys.get(PATTERN, rule.period)
    if isinstance(pattern, list):
        if len(pattern) < layers:
            raise ValueError(
                f"{PATTERN} has {len(pattern)} values; the file has {layers} layers"
            )
        return [bool(flag) for flag in pattern[:layers]]
    if isinstance(pattern, bool) or not isinstance(pattern, int) or pattern < 0:
        raise ValueError(
            f"{PATTERN} is {pattern!r:.40}; it must be a whole number or a list"
        )
    if pattern == 0:
        return [True] * layers
    whole = 0 if rule.whole_first else pattern - 1
    return [i % pattern != whole for i in range(layers)]
