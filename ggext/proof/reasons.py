"""Why llama.cpp executes another table than the wanted one: the parameters that it runs with, in
words."""

from __future__ import annotations

import math

from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import still_pairs_in_words
from ggext.proof.report import Expected
from ggext.rope import methods
from ggext.rope.capabilities import capability_of
from ggext.runtime.ggml import RopeCall

#: Who reads these keys in the pinned llama.cpp; for other architectures they change nothing.
_READERS = {
    "rope.scaling.yarn_attn_factor": {"grok"},
    "rope.scaling.yarn_beta_fast": {"grok", "mistral3"},
    "rope.scaling.yarn_beta_slow": {"grok", "mistral3"},
}
_SAME = 1e-5  # relative


def kernel_gain(call: RopeCall) -> float:
    """What YaRN's operation multiplies the gain by on its own: 1 + 0.1 ln f."""
    if call.ext_factor == 0 or call.freq_scale <= 0:
        return 1.0
    return 1.0 + 0.1 * math.log(1 / call.freq_scale)


def gain_reason(
    gguf: GgufFile, expected: float, executed: float, call: RopeCall
) -> str:
    own = kernel_gain(call)
    remedy = f"rope.scaling.attn_factor must be {expected / own:.6g}"
    because = (
        f" ({expected:.6g} / {own:.6g}, by which YaRN's operation multiplies it on its own)"
        if own != 1
        else ""
    )
    unread = _unread(gguf, "rope.scaling.yarn_attn_factor")
    if unread:
        return f"{unread}; {remedy}{because}"
    if own != 1 and math.isclose(executed, expected * own, rel_tol=1e-4):
        return (
            f"YaRN's operation multiplies the gain by {own:.6g} on its own, so {remedy}"
        )
    return f"the operation's attn_factor is {call.attn_factor:.6g}; {remedy}{because}"


def _unread(gguf: GgufFile, *names: str) -> str:
    keys = gguf.arch_keys()
    unread = [f"{name} {keys[name]:g}" for name in names if _is_unread(gguf, name)]
    if not unread:
        return ""
    return (
        f"the file's {' and '.join(unread)} {'are' if unread[1:] else 'is'} not read by "
        f"llama.cpp's {gguf.arch}"
    )


def _is_unread(gguf: GgufFile, name: str) -> bool:
    return (
        isinstance(gguf.arch_keys().get(name), float)
        and gguf.arch not in _READERS[name]
    )


def frequency_reason(gguf: GgufFile, expected: Expected, call: RopeCall) -> str:
    """The first parameter of the operation that is not as wanted."""
    geometry = expected.geometry
    scaling = expected.scaling
    still = still_pairs_in_words(gguf)
    if still:
        return still
    if call.layout != geometry.layout:
        return (
            f"llama.cpp's {gguf.arch} pairs dimensions as {call.layout}; {geometry.layout} is "
            "wanted"
        )
    if call.n_dims != geometry.n_rot:
        return (
            f"the operation turns {call.n_dims} dimensions of a head; "
            f"{geometry.n_rot} are expected"
        )
    if call.factors is not None:
        return "the tensor of frequency factors does not hold the wanted table: bake the file again"
    differences = (
        [*_yarn_differences(gguf, expected, call)] if scaling.method == "yarn" else []
    )
    differences += _plain_differences(gguf.arch, expected, call)
    return "; ".join(differences) or f"the operation runs as {call}"


def _yarn_differences(gguf: GgufFile, expected: Expected, call: RopeCall) -> list[str]:
    scaling = expected.scaling
    if call.ext_factor == 0:
        return [
            "YaRN is wanted, and the operation runs without it: rope.scaling.type must be yarn"
        ]
    fast = scaling.beta_fast or methods.YARN_BETA_FAST
    slow = scaling.beta_slow or methods.YARN_BETA_SLOW
    if _same(call.beta_fast, fast) and _same(call.beta_slow, slow):
        return []
    if scaling.truncate is False:
        nearest = f"beta_fast {call.beta_fast:.4g}, beta_slow {call.beta_slow:.4g}"
        rounds = (
            "the range of blended pairs is not to be rounded (truncate false), and llama.cpp "
            "always rounds it"
        )
        return [f"{rounds}; these are the nearest whole bounds: {nearest}"]
    line = (
        f"beta_fast {fast:g} and beta_slow {slow:g} wanted, {call.beta_fast:g} and "
        f"{call.beta_slow:g} executed"
    )
    unread = _unread(gguf, "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow")
    return [
        f"{line}: {unread}; bake the table as a tensor (ggext convert does)"
        if unread
        else line
    ]


def _plain_differences(arch: str, expected: Expected, call: RopeCall) -> list[str]:
    geometry = expected.geometry
    scaling = expected.scaling
    base = geometry.base
    if scaling.method == "ntk":
        base = methods.ntk_base(scaling.factor or 1.0, geometry)
    scale = 1 / (scaling.factor or 1.0) if scaling.method in ("linear", "yarn") else 1.0
    original = methods.original_context(scaling, geometry)
    result = []
    if not _same(call.freq_base, base):
        result.append(
            f"base {base:.9g} wanted, {call.freq_base:.9g} executed "
            f"({capability_of(arch).base_key})"
        )
    if not _same(call.freq_scale, scale):
        result.append(
            f"factor {1 / scale:g} wanted, {1 / call.freq_scale:g} executed (rope.scaling.factor)"
        )
    if scaling.method == "yarn" and call.n_ctx_orig != original:
        result.append(
            f"original context {original:,} wanted, {call.n_ctx_orig:,} executed"
        )
    if scaling.method == "llama3":
        result.append(
            "Llama 3's scaling needs the tensor rope_freqs.weight, and the operation gets none"
        )
    if scaling.method != "yarn" and call.ext_factor != 0:
        result.append(
            f"{scaling.method} is wanted, and the operation runs YaRN (rope.scaling.type)"
        )
    return result


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_SAME)
