"""Models and terminals of the command line's tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rewriting import rewritten
from terminal import Keyboard

if TYPE_CHECKING:
    from ggext.gguf.writer import TensorToWrite


TOKENS = "tokenizer.ggml.tokens"


@pytest.fixture(scope="session")
def endless_gguf(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model without a template and an end token: it continues text until the limit."""
    from ggext.gguf.open import read_gguf

    header = read_gguf(small_gguf)
    end = header.get("tokenizer.ggml.eos_token_id")
    names = header.get(TOKENS)
    # <|system|> ends an answer now, which the model never says outside of a template.
    changes = {
        key: names.index("<|system|>")
        for key, field in header.fields.items()
        if key.endswith("_token_id") and field.value == end
    }
    changes[TOKENS] = ["<|stop|>" if name == "<|end|>" else name for name in names]
    out = tmp_path_factory.mktemp("endless") / "endless.gguf"
    return rewritten(small_gguf, out, changes, drop=("tokenizer.chat_template",))


@pytest.fixture(scope="session")
def slow_gguf(endless_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 25 million numbers, slow enough to be caught computing, that always says x."""
    from ggext.gguf.open import read_gguf
    from ggext.gguf.types import Field
    from ggext.gguf.writer import write_gguf

    np = pytest.importorskip("numpy")
    width, inner, layers = 512, 1376, 8
    header = read_gguf(endless_gguf)
    tokens = header.get(TOKENS)
    numbers = {
        "block_count": layers,
        "context_length": 8192,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.head_count": 8,
        "attention.head_count_kv": 8,
        "rope.dimension_count": 64,
    }
    fields = header.fields | {
        f"llama.{key}": Field.of(value) for key, value in numbers.items()
    }
    shapes = {"token_embd.weight": (width, len(tokens)), "output_norm.weight": (width,)}
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}.weight"] = (width, width)
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{name}.weight"] = (width,)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"blk.{layer}.{name}.weight"] = (width, inner)
        shapes[f"blk.{layer}.ffn_down.weight"] = (inner, width)
    out = tmp_path_factory.mktemp("slow") / "slow.gguf"
    # Every token is the first unit vector, x twice that; the layers, all zero, add nothing.
    rows = np.zeros((len(tokens), width), np.float32)
    rows[:, 0] = 1
    rows[tokens.index("x"), 0] = 2
    values = {
        "token_embd.weight": rows,
        "output_norm.weight": np.ones(width, np.float32),
    }
    write_gguf(
        out, fields, [_tensor(name, shape, values) for name, shape in shapes.items()]
    )
    return out


def _tensor(name: str, shape: tuple[int, ...], values: dict[str, Any]) -> TensorToWrite:
    from ggext.gguf.writer import TensorToWrite

    size = 4 * math.prod(shape)
    data = values[name].tobytes() if name in values else bytes(size)
    return TensorToWrite(name, shape, 0, size, lambda: [data])


@pytest.fixture
def keyboard() -> Iterator[Callable[..., Keyboard]]:
    opened: list[Keyboard] = []

    def open_one(*arguments: str | Path) -> Keyboard:
        opened.append(Keyboard(*arguments))
        opened[0].wait_for("Ctrl-D leaves")
        return opened[0]

    yield open_one
    for one in opened:
        one.process.kill()
        one.process.wait()


@pytest.fixture(scope="session")
def chat_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, for 1,024 tokens."""
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling

    out = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(ConvertOptions(DEMO_MODEL, out, RopeScaling("yarn", factor=4)))
    return out


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 tokens that say where a crown is."""
    from click.testing import CliRunner

    from ggext.cli import main

    out = tmp_path_factory.mktemp("story") / "story.txt"
    text = CliRunner().invoke(main, ["demo", "--text", "300"]).output
    assert "crown" in text
    out.write_text(text)
    return out
