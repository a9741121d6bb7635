"""`convert --in-place` and its kin as a user calls them: one decision, executed in a file or
next to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from changed_in_place import FACTORS, REQUESTS, digest, ggext, logits, refused, told
from tiny_gguf import write_random

from ggext.convert import ConvertOptions, convert
from ggext.gguf import disk, inplace
from ggext.gguf.exclusive import ExclusiveFile
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import effective_table
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.rope.scaling import RopeScaling


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_in_place_is_what_a_new_file_would_be(
    model: Path, tmp_path: Path, request_: list[str]
) -> None:
    """The same keys, tensors and, in llama.cpp, logits; and undo gives the same SHA-256 as
    before."""
    pytest.importorskip("llama_cpp")
    before = digest(model)
    told("convert", model, tmp_path / "new.gguf", *request_)
    assert f"changed {model}" in told("convert", model, "--in-place", *request_)
    assert "have the same keys and tensors" in told(
        "inspect", "--diff", tmp_path / "new.gguf", model
    )
    np.testing.assert_array_equal(logits(model), logits(tmp_path / "new.gguf"))
    assert (
        ggext("verify", model).exit_code
        == ggext("verify", tmp_path / "new.gguf").exit_code
    )
    assert "1 change taken back" in told("undo", model)
    assert digest(model) == before


def test_bakes_replace_and_none_restores(model: Path) -> None:
    original, before = read_gguf(model), digest(model)
    for request_ in (REQUESTS["yarn by tensor"], REQUESTS["linear"], REQUESTS["yarn"]):
        told("convert", model, "--in-place", *request_)
    gguf = read_gguf(model)
    assert list(gguf.tensors) == list(original.tensors)
    assert gguf.get("llama.rope.scaling.factor") == 4.0
    assert gguf.get("llama.context_length") == 256
    told("convert", model, "--in-place", "--rope", "none")
    back = read_gguf(model)
    assert (back.fields, back.tensors) == (original.fields, original.tensors)
    assert "4 changes taken back" in told("undo", model)
    assert digest(model) == before
    assert "there is nothing to undo" in refused("undo", model)


def with_factors_in_front(tmp_path: Path) -> Path:
    """As llama.cpp's converter writes Llama 3: the frequency factors are the first tensor."""
    gguf = read_gguf(write_random(tmp_path / "other.gguf", "llama"))
    data = FACTORS.tobytes()
    tensors = [TensorToWrite("rope_freqs.weight", (8,), 0, len(data), lambda: [data])]
    tensors += [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [gguf.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in gguf.tensors.values()
    ]
    write_gguf(tmp_path / "model.gguf", gguf.fields, tensors)
    return tmp_path / "model.gguf"


@pytest.mark.parametrize(
    "request_", [REQUESTS["yarn"], REQUESTS["yarn by tensor"]], ids=["keys", "tensor"]
)
def test_factors_that_others_lie_behind(tmp_path: Path, request_: list[str]) -> None:
    """They cannot be taken out without moving data: they become ones, or the new ones."""
    pytest.importorskip("llama_cpp")
    model = with_factors_in_front(tmp_path)
    before = digest(model)
    asked = [*request_, "--original-context", "64"]
    told("convert", model, tmp_path / "new.gguf", *asked)
    output = told("convert", model, "--in-place", *asked)
    assert ("rope_freqs.weight set to 1" in output) == (request_ is REQUESTS["yarn"])
    assert next(iter(read_gguf(model).tensors)) == "rope_freqs.weight"
    one, other = (
        effective_table(read_gguf(path)) for path in (model, tmp_path / "new.gguf")
    )
    np.testing.assert_allclose(one.inv_freq, other.inv_freq, rtol=1e-7)
    np.testing.assert_array_equal(logits(model), logits(tmp_path / "new.gguf"))
    told("undo", model)
    assert digest(model) == before


def test_what_cannot_be_done_in_place(model: Path, tmp_path: Path) -> None:
    before = digest(model)
    assert "nothing is asked of" in refused("convert", model, "--in-place")
    both = refused(
        "convert",
        model,
        "x.gguf",
        "--in-place",
        "--yarn",
        4,
        "--type",
        "q8_0",
        "--split",
        "1G",
    )
    assert "changes the header of" in both
    assert "excludes OUT, --type, --split; leave one of them out" in both
    assert "is a checkpoint" in refused("convert", "demo", "--in-place", "--yarn", 4)
    folded = refused(
        "convert", model, "--in-place", "--yarn", 4, "--encoding", "folded"
    )
    assert (
        "folding the gain into blk.0.attn_q.weight and 1 others is not done in"
        in folded
    )
    assert "choose --encoding keys" in folded
    told(
        "convert", model, tmp_path / "folded.gguf", "--yarn", 4, "--encoding", "folded"
    )
    assert "ggext undo" in refused(
        "convert", tmp_path / "folded.gguf", "--in-place", "--rope", "none"
    )
    assert digest(model) == before
    assert "dry run: nothing was written" in told(
        "convert", model, "--in-place", "--yarn", 4, "--dry-run"
    )
    assert digest(model) == before


def test_foreign_longrope_in_the_middle_is_refused(tmp_path: Path) -> None:
    gguf = read_gguf(write_random(tmp_path / "other.gguf", "llama"))
    data = FACTORS.tobytes()
    tensors = [
        TensorToWrite(
            f"rope_factors_{which}.weight", (8,), 0, len(data), lambda: [data]
        )
        for which in ("long", "short")
    ]
    last = gguf.tensors["output_norm.weight"]
    tensors.append(
        TensorToWrite(
            last.name, last.shape, 0, last.nbytes, lambda: [gguf.tensor_data(last.name)]
        )
    )
    longrope = {
        "llama.rope.scaling.type": "longrope",
        "llama.rope.scaling.original_context_length": 32,
        "llama.rope.scaling.attn_factor": 1.0,
    }
    fields = gguf.fields | {key: Field.of(value) for key, value in longrope.items()}
    write_gguf(tmp_path / "model.gguf", fields, tensors)
    message = refused("convert", tmp_path / "model.gguf", "--in-place", "--yarn", 4)
    assert (
        "others after it and cannot be taken out in place; write to a new file"
        in message
    )


def test_a_second_file_shares_the_data(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data lies at the same place of a block, so that a file system that can share blocks
    does."""
    shares = []

    def share(
        source: int, target: int, source_at: int, target_at: int, length: int
    ) -> bool:
        shares.append((source_at, target_at, source_at + length))
        disk.copy(source, target, source_at, target_at, length, lambda _: None)
        return True

    odd = tmp_path / "odd.gguf"  # a foreign file: data starts anywhere
    gguf = read_gguf(model)
    header = odd_header(gguf)
    odd.write_bytes(header + model.read_bytes()[gguf.data_offset :])
    assert read_gguf(odd).data_offset % 4096 == 32
    monkeypatch.setattr(disk, "share", share)
    assert "data shared" in told(
        "convert", odd, tmp_path / "new.gguf", *REQUESTS["yarn"]
    )
    ((source_at, target_at, end),) = shares
    assert source_at % 4096 == target_at % 4096 == 0
    assert end == odd.stat().st_size
    new = read_gguf(tmp_path / "new.gguf")
    assert new.get("llama.rope.scaling.factor") == 4.0
    assert all(
        bytes(new.tensor_data(n)) == bytes(gguf.tensor_data(n)) for n in gguf.tensors
    )


def odd_header(gguf: GgufFile) -> bytes:
    from ggext.gguf.header import pack_header, packed_length, roomy_length

    infos = list(gguf.tensors.values())
    return pack_header(
        gguf.fields,
        infos,
        roomy_length(packed_length(gguf.fields, infos), 32, congruent_to=32),
    )


def test_differences(model: Path, tmp_path: Path) -> None:
    told("convert", model, tmp_path / "new.gguf", *REQUESTS["yarn by tensor"])
    output = told("inspect", "--diff", model, tmp_path / "new.gguf")
    assert "key    llama.context_length: 64 → 256\n" in output
    assert "tensor rope_freqs.weight: absent → F32 [8]\n" in output
    back = told("inspect", "--diff", tmp_path / "new.gguf", model)
    assert "tensor rope_freqs.weight: F32 [8] → absent\n" in back
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    (tmp_path / "flipped.gguf").write_bytes(data)
    last = list(read_gguf(model).tensors)[-1]
    found = json.loads(
        told("inspect", "--diff", model, tmp_path / "flipped.gguf", "--json")
    )
    assert [(d["kind"], d["name"]) for d in found] == [("tensor", last)]
    assert found[0]["after"].startswith("1 of ")
    gguf = read_gguf(model)
    tokens = [*gguf.get("tokenizer.ggml.tokens")]
    tokens[300] = "other"
    fields = gguf.fields | {
        "tokenizer.ggml.tokens": Field.of(tokens),
        "llama.vocab_size": Field.of(1.5),
    }
    write_gguf(tmp_path / "tokens.gguf", fields, [])
    output = told("inspect", "--diff", model, tmp_path / "tokens.gguf")
    assert (
        "320 × STRING, number 300 is '▁41' → 320 × STRING, number 300 is 'other'"
        in output
    )
    assert "320 (UINT32) → 1.5 (FLOAT32)" in output
    assert "No such file" in refused("inspect", "--diff", model, tmp_path / "none.gguf")


def test_repair_says_what_it_did(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every command repairs what it opens."""
    before = digest(model)

    def stop(*_: object) -> None:
        raise PowerFailureError

    for command in (["repair"], ["inspect"]):
        with monkeypatch.context() as patch:
            patch.setattr(ExclusiveFile, "write", stop)
            patch.setattr(inplace, "_take_back", stop)
            with pytest.raises(PowerFailureError):
                convert(
                    ConvertOptions(
                        model,
                        rope=RopeScaling("yarn", factor=4),
                        encoding="tensor",
                        in_place=True,
                    )
                )
        told_now = told(*command, model)
        if command == ["repair"]:
            assert (
                told_now
                == f"{model}: an interrupted change was taken back: the file is as it was before it\n"
            )
        assert digest(model) == before
    assert told("repair", model) == f"{model}: nothing to repair\n"


class PowerFailureError(BaseException):
    pass
