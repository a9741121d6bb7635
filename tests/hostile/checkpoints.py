"""A hostile checkpoint for every limit: what is wrong with it, and the words of the refusal.

``python tests/hostile/checkpoints.py FOLDER`` writes them all there, to be tried on other programs
too. Each is the embedded model with one thing changed; the files that are as they were are links to
it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

GOOD = Path(str(files("ggext") / "data" / "demo-model"))
NAMES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"

Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Hostile:
    """``damage``: changes the copy of the good model in a folder. ``message``: a part of the error.
    ``needs``: the package that reads this kind of file."""

    damage: Damage
    message: str
    needs: str | None = None


def make(case: Hostile, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in NAMES:
        if (GOOD / name).exists():
            (folder / name).symlink_to(GOOD / name)
    case.damage(folder)
    return folder


def write(path: Path, data: bytes | str) -> None:
    """In place of the link, not through it."""
    path.unlink(missing_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def content(name: str, data: bytes | str) -> Damage:
    return lambda folder: write(folder / name, data)


def parts() -> tuple[dict[str, Any], bytes]:
    """The good header and the data after it."""
    whole = (GOOD / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def with_header(header: bytes | str, data: bytes) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


def raw_header(text: bytes | str) -> Damage:
    return lambda folder: write(folder / WEIGHTS, with_header(text, parts()[1]))


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        values, data = parts()
        change(values)
        write(folder / WEIGHTS, with_header(json.dumps(values), data))

    return damage


def norm(**changes: Any) -> Damage:
    return header(lambda values: values[NORM].update(changes))


def renamed(name: str) -> Damage:
    return header(lambda values: values.update({name: values.pop(NORM)}))


def twice_in_the_header(folder: Path) -> None:
    values, data = parts()
    text = json.dumps(values)
    write(
        folder / WEIGHTS,
        with_header(text[:-1] + f', "{NORM}": {json.dumps(values[NORM])}' + "}", data),
    )


def sparse(name: str, size: int) -> Damage:
    def damage(folder: Path) -> None:
        write(folder / name, b"")
        os.truncate(folder / name, size)

    return damage


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((GOOD / "config.json").read_text()) | changes
        write(folder / "config.json", json.dumps(values))

    return damage


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((GOOD / "tokenizer.json").read_text("utf-8"))
        change(values)
        write(folder / "tokenizer.json", json.dumps(values))

    return damage


def index(weight_map: Any, *, shards: bool = True) -> Damage:
    def damage(folder: Path) -> None:
        if shards:
            for name in ("model-1.safetensors", "model-2.safetensors"):
                shutil.copy(GOOD / WEIGHTS, folder / name)
        (folder / WEIGHTS).unlink()
        write(folder / f"{WEIGHTS}.index.json", json.dumps({"weight_map": weight_map}))

    return damage


def shards_that_differ(folder: Path) -> None:
    """Two with the same tensors, of which the last one's values are others."""
    index({NORM: "model-1.safetensors", "lm_head.weight": "model-2.safetensors"})(
        folder
    )
    entries, data = parts()
    (folder / "model-2.safetensors").unlink()
    changed = bytes(len(data))
    write(folder / "model-2.safetensors", with_header(json.dumps(entries), changed))


def deep_index(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    write(folder / f"{WEIGHTS}.index.json", DEEP)


def pickled(write_it: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        write_it(folder / "pytorch_model.bin")

    return damage


def zip_bomb(path: Path) -> None:
    """64 MiB of pickle in 64 KiB of archive."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w") as entry,
    ):
        for _ in range(64):
            entry.write(bytes(1 << 20))


def repeated(path: Path) -> None:
    """A tensor of 10^18 values over one that is stored."""
    import torch

    torch.save({NORM: torch.zeros(1).expand(10**9, 10**9)}, path)


def sparse_tensor(path: Path) -> None:
    import torch

    torch.save(
        {NORM: torch.sparse_coo_tensor([[0]], [1.0], (10**9,), check_invariants=False)},
        path,
    )


def nested(path: Path) -> None:
    import torch

    torch.save({"model": {NORM: torch.zeros(1)}}, path)


class Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("owned"),))


def code(path: Path) -> None:
    import torch

    torch.save({NORM: Touch()}, path)


DEEP = "[" * 100_000
HUGE = 10**18

HOSTILE: dict[str, Hostile] = {
    # safetensors
    "weights-empty": Hostile(
        content(WEIGHTS, b""), "has 0 bytes; it is not a safetensors file"
    ),
    "weights-cut-in-the-length": Hostile(content(WEIGHTS, b"\x10\0\0"), "has 3 bytes"),
    "weights-cut-short": Hostile(
        lambda folder: write(folder / WEIGHTS, (GOOD / WEIGHTS).read_bytes()[:-1]),
        "the file is truncated",
    ),
    "header-length-absurd": Hostile(
        content(WEIGHTS, struct.pack("<Q", (1 << 64) - 1) + b"{}"), "its header claims"
    ),
    "header-length-beyond-the-limit": Hostile(
        lambda folder: (
            write(folder / WEIGHTS, struct.pack("<Q", 33 << 20)),
            os.truncate(folder / WEIGHTS, 34 << 20),
        )[0],
        "its header claims 34603008 bytes",
    ),
    "header-not-json": Hostile(raw_header("{'a': 1}"), "not valid JSON"),
    "header-not-utf8": Hostile(raw_header(b'{"\xff": 1}'), "not valid JSON"),
    "header-utf16": Hostile(raw_header("{}".encode("utf-16")), "not valid JSON"),
    "header-deep": Hostile(raw_header(DEEP), "not valid JSON"),
    "header-number-of-5000-digits": Hostile(
        raw_header('{"a": ' + "1" * 5000 + "}"), "not valid JSON"
    ),
    "header-a-list": Hostile(raw_header("[]"), "not a JSON object"),
    "tensor-twice": Hostile(
        twice_in_the_header, "its header has 'model.norm.weight' twice"
    ),
    "tensor-an-absurd-shape": Hostile(
        norm(shape=[HUGE]), "needs 4000000000000000000 bytes and has"
    ),
    "tensor-an-absurd-product": Hostile(
        norm(shape=[HUGE] * 8), "needs 4000000000000000000000"
    ),
    "tensor-beyond-64-bits": Hostile(norm(shape=[1 << 64]), "is malformed"),
    "tensor-a-negative-shape": Hostile(norm(shape=[-1]), "is malformed"),
    "tensor-a-float-shape": Hostile(norm(shape=[1.0]), "is malformed"),
    "tensor-a-boolean-shape": Hostile(norm(shape=[True]), "is malformed"),
    "tensor-1000-dimensions": Hostile(norm(shape=[1] * 1000), "is malformed"),
    "tensor-out-of-range": Hostile(
        norm(data_offsets=[HUGE, HUGE + 512]), "the file is truncated"
    ),
    "tensor-reversed": Hostile(norm(data_offsets=[512, 0]), "the file is truncated"),
    "tensor-negative-offsets": Hostile(norm(data_offsets=[-512, 0]), "is malformed"),
    "tensor-overlapping": Hostile(norm(data_offsets=[4, 516]), "overlap"),
    "tensor-three-offsets": Hostile(norm(data_offsets=[0, 1, 2]), "is malformed"),
    "tensor-an-unknown-dtype": Hostile(norm(dtype="F4_E2M1"), "has dtype F4_E2M1"),
    "tensor-a-hostile-dtype": Hostile(
        norm(dtype="\x1b[2J\n" * 99), "has dtype \\x1b[2J"
    ),
    "tensor-a-number-for-a-dtype": Hostile(norm(dtype=1), "is malformed"),
    "tensor-a-terminal-escape-for-a-name": Hostile(
        renamed("\x1b]0;owned\x07"), "which no model has"
    ),
    "tensor-a-lone-surrogate-for-a-name": Hostile(
        renamed("\ud800"), "which no model has"
    ),
    "tensor-a-long-name": Hostile(renamed("n" * 100_000), "which no model has"),
    "tensor-no-object": Hostile(
        header(lambda values: values.update({NORM: []})), "is malformed"
    ),
    # shards
    "index-missing-shard": Hostile(
        index({NORM: "model-3.safetensors"}), "model-3.safetensors is missing and"
    ),
    "index-outside": Hostile(
        index({NORM: "../model.safetensors"}), "shards must lie next to it"
    ),
    "index-nul": Hostile(index({NORM: "a\0b"}), "shards must lie next to it"),
    "index-a-number": Hostile(index({NORM: 7}), "shards must lie next to it"),
    "index-a-list": Hostile(index([]), "weight_map is missing or empty"),
    "index-promises-too-much": Hostile(
        index({NORM: "model-1.safetensors", "model.extra": "model-1.safetensors"}),
        "promises 1 tensors that no shard",
    ),
    "index-a-tensor-in-two-shards": Hostile(shards_that_differ, "with other values"),
    "index-deep": Hostile(deep_index, "is not valid JSON"),
    # configurations
    "config-not-utf8": Hostile(content("config.json", b"\xff{}"), "is not UTF-8 text"),
    "config-deep": Hostile(content("config.json", DEEP), "is not valid JSON"),
    "config-a-list": Hostile(content("config.json", "[]"), "expected a JSON object"),
    "config-too-large": Hostile(
        sparse("config.json", 17 << 20), "is larger than 16 MiB"
    ),
    "config-nan": Hostile(
        config(rms_norm_eps=float("nan")),
        "rms_norm_eps is nan; it must be at least 0 and finite",
    ),
    "config-infinity": Hostile(
        config(rms_norm_eps=float("inf")), "rms_norm_eps is inf"
    ),
    "config-beyond-float32": Hostile(
        config(rms_norm_eps=1e300), "rms_norm_eps is 1e+300"
    ),
    "config-beyond-float64": Hostile(
        config(rms_norm_eps=10**400), "rms_norm_eps is 1000000"
    ),
    "config-negative": Hostile(config(rms_norm_eps=-1e-6), "rms_norm_eps is -1e-06"),
    "config-a-text-for-a-number": Hostile(
        config(rms_norm_eps="1e-6"), "rms_norm_eps is '1e-6'; it must be a number"
    ),
    "config-a-list-for-a-number": Hostile(
        config(hidden_size=[96]), "hidden_size is [96]; it must be a whole number"
    ),
    "config-true-for-a-number": Hostile(
        config(num_hidden_layers=True), "it must be a whole number"
    ),
    "config-no-heads": Hostile(
        config(num_attention_heads=0), "num_attention_heads is 0; it must be between 1"
    ),
    "config-absurd-heads": Hostile(
        config(num_attention_heads=1 << 30),
        "num_attention_heads is 1073741824; it must be between 1 and 4096",
    ),
    "config-absurd-layers": Hostile(
        config(num_hidden_layers=HUGE), "num_hidden_layers is 1000000000000000000"
    ),
    "config-more-layers-than-tensors": Hostile(
        config(num_hidden_layers=99), "needs the tensor model.layers."
    ),
    "config-another-width": Hostile(
        config(hidden_size=100, head_dim=32), "has the shape"
    ),
    "config-a-smaller-vocabulary": Hostile(config(vocab_size=100), "has the shape"),
    "config-a-larger-vocabulary": Hostile(
        config(vocab_size=1_000_000), "has the shape"
    ),
    "config-a-long-model-type": Hostile(
        config(model_type="x" * 1_000_000), "is not a family that ggext converts"
    ),
    "config-rope-nan": Hostile(
        config(rope_parameters={"rope_type": "default", "rope_theta": float("nan")}),
        "rope_theta",
    ),
    "config-rope-a-list-for-a-base": Hostile(
        config(rope_parameters={"rope_type": "default", "rope_theta": [1]}),
        "rope_theta is [1]",
    ),
    # tokenizers
    "tokenizer-unknown-expression": Hostile(
        tokenizer(lambda values: values.update(pre_tokenizer=SPLIT)),
        "llama.cpp has no pre-tokenizer with the expressions",
    ),
    "tokenizer-more-tokens-than-embeddings": Hostile(
        tokenizer(
            lambda values: values["model"]["vocab"].update(
                {f"extra{i}": 9000 + i for i in range(9)}
            )
        ),
        "but vocab_size in config.json is",
    ),
    "tokenizer-absurd-id": Hostile(
        tokenizer(lambda values: values["model"]["vocab"].update(extra=HUGE)),
        "has the id '1000000000000000000'",
    ),
    "tokenizer-not-utf8": Hostile(
        content("tokenizer.json", b"\xff"), "is not UTF-8 text"
    ),
    "tokenizer-deep": Hostile(content("tokenizer.json", DEEP), "is not valid JSON"),
    "tokenizer-too-large": Hostile(
        sparse("tokenizer.json", 129 << 20), "is larger than 128 MiB"
    ),
    "template-too-large": Hostile(
        sparse("chat_template.jinja", 17 << 20), "is larger than 16 MiB"
    ),
    # pickles
    "pickle-zip-bomb": Hostile(
        pickled(zip_bomb), "is a packed archive: 67108864 bytes in", "torch"
    ),
    "pickle-code": Hostile(
        pickled(code), "is not a plain checkpoint of tensors", "torch"
    ),
    "pickle-repeats": Hostile(pickled(repeated), "repeats its values", "torch"),
    "pickle-sparse": Hostile(
        pickled(sparse_tensor), "is sparse, quantized or repeats", "torch"
    ),
    "pickle-nested": Hostile(pickled(nested), "does not hold tensors by name", "torch"),
    "pickle-no-archive": Hostile(
        pickled(lambda path: path.write_bytes(b"\x80\x02}.")), "is no archive", "torch"
    ),
}
SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": r"\w+"},
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ],
}

if __name__ == "__main__":
    for case_name, hostile in HOSTILE.items():
        make(hostile, Path(sys.argv[1]) / case_name)
