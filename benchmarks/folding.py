"""What folding YaRN's gain into the query weights costs, beside the rounding of the weights' type.

    python benchmarks/folding.py MODEL.gguf TEXT > benchmarks/results/folding.md

Every file is compared with the float32 one, as mean KL of the next token in nats with a 95 %
interval. A quantized MODEL is taken as what its weights are in float32.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ggext.convert import ConvertOptions, convert
from ggext.gguf.open import read_gguf
from ggext.gguf.types import F32
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.proof.reference import divergence
from ggext.rope.encoding import EncodingName
from ggext.rope.scaling import RopeScaling
from ggext.runtime.engine import Session, SessionOptions
from ggext.runtime.model import Model

YARN = RopeScaling("yarn", factor=2)
TOKENS = 1024


def in_float32(source: Path, out: Path) -> Path:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    gguf = read_gguf(source)
    tensors = []
    for info in gguf.tensors.values():
        raw = np.frombuffer(gguf.tensor_data(info.name), np.uint8)
        if info.type == F32:
            values = raw.view("<f4")
        else:
            rows = raw.reshape(info.shape[1], -1)
            values = (
                dequantize(rows, GGMLQuantizationType(info.type)).astype("<f4").ravel()
            )
        data = values.tobytes()
        tensors.append(
            TensorToWrite(info.name, info.shape, F32, len(data), lambda d=data: [d])
        )  # type: ignore[misc]
    write_gguf(out, gguf.fields, tensors)
    return out


def logits(path: Path, text: str) -> np.ndarray[Any, Any]:
    with Model.open(path) as model:
        options = SessionOptions(n_ctx=TOKENS, kv_type="f32", flash_attention=False)
        with Session(model, options) as session:
            return session.logits(model.tokenize(text)[:TOKENS])


def main() -> None:
    source, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text()[5000:15000]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        exact = in_float32(source, folder / "exact.gguf")

        def baked(model: Path, encoding: EncodingName, kind: str = "auto") -> Path:
            out = folder / f"{model.stem}-{encoding}-{kind}.gguf"
            convert(ConvertOptions(model, out, YARN, type=kind, encoding=encoding))
            return out

        expected = logits(baked(exact, "keys"), text)
        print(
            f"{source.name}, YaRN ×2, {TOKENS} tokens of {sys.argv[2].rsplit('/', 1)[-1]}\n"
        )
        print("| file | mean KL from the float32 file, nats |\n|---|---|")

        def row(name: str, path: Path) -> None:
            kl, _ = divergence(expected, logits(path, text))
            interval = 1.96 * kl.std() / len(kl) ** 0.5
            print(f"| {name} | {kl.mean():.2e} ± {interval:.1e} |", flush=True)

        row("float32, folded", baked(exact, "folded"))
        for kind in ("f16", "bf16", "q8_0"):
            keys = baked(exact, "keys", kind)
            row(f"{kind}, keys", keys)
            row(f"{kind}, folded from float32", baked(exact, "folded", kind))
            row(f"{kind}, folded in the {kind} file", baked(keys, "folded"))
        row("as published, keys", keys := baked(source, "keys"))
        row("as published, folded in its block scales", baked(keys, "folded"))


if __name__ == "__main__":
    main()
