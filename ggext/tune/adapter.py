"""The small GGUF file: what LoRA trained, for llama.cpp to put on the untuned file.

llama.cpp adds (α / rank) · B · A to a matrix, rank being B's (llama-adapter.h). Rows of B go where
the converter puts the rows of the matrix; where a gain is folded into the query rows of the base,
those of B are multiplied by the same m², for m²·(W + BA) = m²·W + (m²·B)·A.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.config import read_config
from ggext.checkpoint.safetensors import read_header
from ggext.convert.fold import fold_query
from ggext.convert.rules import gguf_name
from ggext.convert.sources import open_source
from ggext.converters import family_of
from ggext.errors import CheckpointError
from ggext.gguf.open import read_gguf
from ggext.gguf.types import F32, Field
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.rope.keys import query_scale
from ggext.runtime.adapter import BASE_KEY, BASE_NAME_KEY, fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.converters.base import TensorRule

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class Factors:
    """Of a matrix that changes by scale · B · A: ``a`` (rank, columns), ``b`` (rows, rank)."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]


def write_adapter(folder: Path, checkpoint: Path, base: Path, out: Path) -> None:
    """``folder``: PEFT's adapter; ``checkpoint``: what it was trained on; ``base``: the GGUF file
    of that, with the same scaling. Raises ``CheckpointError`` for more than plain LoRA."""
    config = json.loads((folder / _CONFIG).read_text("utf-8"))
    _check_plain(folder, config)
    family = family_of(read_config(checkpoint))
    rules = {
        rule.sources[0]: rule for rule in family.tensors() if len(rule.sources) == 1
    }
    scales = _row_scales(base)
    tensors: list[TensorToWrite] = []
    for module, factors in sorted(read_factors(folder).items()):
        rule = rules.get(f"{module}.weight")
        if (
            rule is None
            or rule.transposed
            or rule.arranged
            or rule.view
            or rule.written
        ):
            raise CheckpointError(
                f"{folder}: {module} is stored otherwise in a GGUF file, so its adapter cannot be; "
                "the merged file has it"
            )
        name = rule.target or gguf_name(family.arch, rule.sources[0])
        tensors += _written(name, factors, rule, scales.get(name))
    header = read_gguf(base)
    fields = {
        "general.architecture": family.arch,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(config["lora_alpha"]),
        BASE_KEY: fingerprint(header),
        BASE_NAME_KEY: base.name,
    }
    write_gguf(out, {key: Field.of(value) for key, value in fields.items()}, tensors)


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """llama.cpp knows one scale for all matrices, and nothing but the two factors."""
    more = (
        "use_dora",
        "use_rslora",
        "alpha_pattern",
        "rank_pattern",
        "modules_to_save",
    )
    extras = [name for name in more if config.get(name)]
    if (
        extras
        or config.get("bias", "none") != "none"
        or config.get("peft_type") != "LORA"
    ):
        raise CheckpointError(
            f"{folder} is more than plain LoRA ({', '.join(extras) or 'biases or another method'})"
            ": llama.cpp would leave that out; the merged file has it"
        )


def read_factors(folder: Path) -> dict[str, Factors]:
    """Both factors of every adapted module, in float32. Raises ``CheckpointError``."""
    import numpy as np

    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    for tensor in read_header(folder / _WEIGHTS):
        match = _NAME.fullmatch(tensor.name)
        if match is None or tensor.dtype != "F32":
            raise CheckpointError(
                f"{folder / _WEIGHTS}: {tensor.name} ({tensor.dtype}) is no factor of an adapter "
                "in float32"
            )
        halves.setdefault(match[1], {})[match[2]] = np.array(tensor.array())
    return {module: Factors(pair["A"], pair["B"]) for module, pair in halves.items()}


def _row_scales(base: Path) -> dict[str, NDArray[np.float64]]:
    """What the rows of some tensors of the base were multiplied by, by the tensors' names."""
    header = read_gguf(base)
    keys = header.arch_keys()
    folded = query_scale(keys)
    if folded == 1.0:
        return {}
    source = open_source(base)
    scaled = fold_query(
        list(source.tensors), source.arch, source.geometry, keys, folded
    )
    return {t.name: t.row_scale for t in scaled if t.row_scale is not None}


def _written(
    name: str, factors: Factors, rule: TensorRule, scale: NDArray[np.float64] | None
) -> Iterator[TensorToWrite]:
    import numpy as np

    b = factors.b if rule.rows is None else factors.b[rule.rows()]
    of_rule = rule.row_scale(len(b))
    if of_rule is not None:
        scale = of_rule if scale is None else scale * of_rule
    if scale is not None:
        b = (b * scale[:, None]).astype(np.float32)
    for suffix, values in (("lora_a", factors.a), ("lora_b", b)):
        data = np.ascontiguousarray(values, "<f4").tobytes()
        shape = values.shape[::-1]
        yield TensorToWrite(
            f"{name}.{suffix}", shape, F32, len(data), partial(list, [data])
        )
