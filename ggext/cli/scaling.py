"""The RoPE scaling that a command line asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggext.cli import convert_options
from ggext.errors import UsageError

if TYPE_CHECKING:
    from ggext.rope.scaling import Method, RopeScaling

_PARAMETERS = (
    "original_context",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "mscale",
    "mscale_all_dim",
    "low_freq_factor",
    "high_freq_factor",
)


def asked_scaling(options: dict[str, Any]) -> RopeScaling | None:
    """The request on the command line; ``None`` if it names no method."""
    from ggext.rope.scaling import RopeScaling

    chosen: list[Method] = [
        m for m in convert_options.METHODS if options[m] is not None
    ]
    if options.get("rope") is not None:
        chosen.append(options["rope"])
    if len(chosen) > 1:
        raise UsageError(
            f"--{' and --'.join(chosen)} are different scalings; choose one"
        )
    parameters = {k: options[k] for k in _PARAMETERS if options.get(k) is not None}
    if not chosen and options["target_context"] is None:
        parameters.pop("attention_factor", None)  # of the model's own scaling
        if parameters:
            option = next(iter(parameters)).replace("_", "-")
            raise UsageError(
                f"--{option} changes a scaling; name one, for example --yarn 4"
            )
        return None
    method = chosen[0] if chosen else "yarn"
    if method == "none" and options["target_context"] is not None:
        raise UsageError(
            "--rope none and --target-context exclude each other; give one"
        )
    factor = options.get(method)
    if factor is not None and factor < 1:
        raise UsageError(
            f"--{method} is {factor:g}; the factor multiplies the context and must be 1 or more"
        )
    if factor is None and method != "none" and options["target_context"] is None:
        raise UsageError(
            f"--rope {method} needs --target-context N, or give the factor: --{method} F"
        )
    return RopeScaling(method=method, factor=factor, **parameters)
