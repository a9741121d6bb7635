"""`ggext chat --adapter`: it computes too, is bound to its base, and is kept with the chat."""

from __future__ import annotations

from pathlib import Path

import pytest
from terminal import GREEDY, ggext

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.gguf.open import read_gguf  # noqa: E402
from ggext.gguf.types import F32, Field  # noqa: E402
from ggext.gguf.writer import TensorToWrite, write_gguf  # noqa: E402
from ggext.runtime.adapter import BASE_KEY, BASE_NAME_KEY, fingerprint  # noqa: E402

QUESTION = ("-p", "Where is the doll?", *GREEDY)


def written(path: Path, model: Path, base: str | None = None) -> Path:
    """An adapter of rank 2 that changes the first layer's values a lot."""
    header = read_gguf(model)
    name = "blk.0.attn_v.weight"
    columns, rows = header.tensors[name].shape
    rng = np.random.default_rng(0)
    tensors = []
    for suffix, shape in (("lora_a", (columns, 2)), ("lora_b", (2, rows))):
        data = rng.normal(0, 2.0, shape[::-1]).astype("<f4").tobytes()
        tensors.append(
            TensorToWrite(f"{name}.{suffix}", shape, F32, len(data), [data].copy)
        )
    fields = {
        "general.architecture": header.arch,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 2.0,
        BASE_KEY: base or fingerprint(header),
        BASE_NAME_KEY: "another.gguf",
    }
    write_gguf(path, {key: Field.of(value) for key, value in fields.items()}, tensors)
    return path


def test_an_adapter_changes_the_answer(endless_gguf: Path, tmp_path: Path) -> None:
    adapter = written(tmp_path / "adapter.gguf", endless_gguf)
    plain, adapted = (
        ggext(endless_gguf, *QUESTION, *more) for more in ((), ("--adapter", adapter))
    )
    assert (plain.returncode, adapted.returncode) == (0, 0)
    assert plain.stdout != adapted.stdout


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("another", b"was trained on another.gguf"),
        (None, b"absent.gguf: there is no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(
    endless_gguf: Path, tmp_path: Path, base: str | None, words: bytes
) -> None:
    adapter = tmp_path / "absent.gguf"
    if base is not None:
        written(adapter, endless_gguf, base)
    done = ggext(endless_gguf, *QUESTION, "--adapter", adapter)
    assert (done.returncode, done.stdout) != (0, b"")
    (line,) = [line for line in done.stderr.splitlines() if b"ggext: " in line]
    assert words in line


def test_a_kept_chat_comes_back_with_its_adapter(
    endless_gguf: Path, tmp_path: Path
) -> None:
    adapter = written(tmp_path / "adapter.gguf", endless_gguf)
    kept = ("--session", "adapted", *QUESTION)
    assert ggext(endless_gguf, *kept, "--adapter", adapter).returncode == 0
    again = ggext(endless_gguf, *kept)
    assert again.returncode == 0
    assert f"adapter {adapter}".encode() in again.stderr
    adapter.unlink()
    gone = ggext(endless_gguf, *kept)
    assert gone.returncode == 2
    assert f"{adapter}: there is no such file".encode() in gone.stderr
