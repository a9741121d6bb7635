"""``convert --in-place`` and its kin as a user calls them: one decision, executed in a file or
next to it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tiny_gguf import write_random

from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.errors import GgufError
from ggext.gguf import disk, inplace
from ggext.gguf.exclusive import ExclusiveFile
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import effective_table
from ggext.gguf.shards import metadata_part
from ggext.gguf.types import Field, ValueType
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.rope.scaling import RopeScaling

FACTORS = np.linspace(1, 8, 8, dtype="f4")


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def told(*arguments: object) -> str:
    result = ggext(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = ggext(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.startswith("ggext: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_random(tmp_path / "model.gguf", "llama")


def logits(path: Path) -> Any:
    from ggext.runtime.engine import Session
    from ggext.runtime.model import Model

    with Model.open(path) as loaded, Session(loaded) as session:
        return session.logits(list(range(3, 63)))


REQUESTS = {
    "yarn": ["--yarn", "4", "--encoding", "keys"],
    "linear": ["--linear", "2"],
    "ntk": ["--ntk", "4"],
    "none": ["--rope", "none"],
    "llama3": ["--llama3", "4"],
    "yarn by tensor": ["--yarn", "4", "--beta-slow", "0.1", "--encoding", "tensor"],
}


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


#: Keys by which unscaled files of different origin differ, ``None`` for one that is not there.
UNSCALED: dict[str, dict[str, Any]] = {
    "as our own converter": {"llama.rope.scaling.type": "none"},
    "as llama.cpp's of Qwen": {"llama.rope.dimension_count": None},
    "nothing said": {"llama.rope.dimension_count": None, "llama.rope.freq_base": None},
    "linear by 1": {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 1.0,
    },
    "yarn's context alone": {
        "llama.rope.scaling.original_context_length": Field(ValueType.UINT32, 64)
    },
    "other keys": {
        "llama.rope.scaling.finetuned": False,
        "llama.rope.scaling.yarn_attn_factor": 1.0,
    },
}


def unscaled_file(path: Path, origin: dict[str, Any]) -> Path:
    gguf = read_gguf(write_random(path.with_name("base.gguf"), "llama"))
    fields = {
        key: field
        for key, field in gguf.fields.items()
        if origin.get(key, field) is not None
    }
    fields |= {
        key: Field.of(value) for key, value in origin.items() if value is not None
    }
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [gguf.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in gguf.tensors.values()
    ]
    write_gguf(path, fields, tensors)
    return path


@pytest.mark.parametrize("origin", UNSCALED.values(), ids=UNSCALED)
def test_none_gives_the_same_keys_back(tmp_path: Path, origin: dict[str, Any]) -> None:
    """Whichever of them the file had, in place and in a file of its own, and after a context of the
    user's own."""
    model = unscaled_file(tmp_path / "model.gguf", origin)
    scaled, back = tmp_path / "scaled.gguf", tmp_path / "back.gguf"
    told("convert", model, scaled, *REQUESTS["yarn"], "--original-context", 32)
    told("convert", scaled, "--in-place", *REQUESTS["yarn by tensor"])
    assert "context: 128 → 64 tokens" in told("convert", scaled, back, "--rope", "none")
    assert "have the same keys and tensors" in told("inspect", "--diff", model, back)


def test_none_gives_back_what_the_converter_said(tmp_path: Path) -> None:
    """Also the recipe, by which a file is verified; and the keys of a file whose query weights were
    changed."""
    told("convert", "demo", tmp_path / "model.gguf")
    told(
        "convert",
        tmp_path / "model.gguf",
        tmp_path / "folded.gguf",
        "--yarn",
        4,
        "--encoding",
        "folded",
    )
    told("convert", tmp_path / "folded.gguf", tmp_path / "back.gguf", "--rope", "none")
    original, back = (
        read_gguf(tmp_path / "model.gguf"),
        read_gguf(tmp_path / "back.gguf"),
    )
    assert "checkpoint" in original.get("ggext.recipe")
    assert back.fields == original.fields


def test_a_scaling_that_was_there_does_not_come_back(tmp_path: Path) -> None:
    """``--rope none`` is no scaling; the author's own comes back with undo."""
    model = unscaled_file(
        tmp_path / "model.gguf",
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0},
    )
    told("convert", model, tmp_path / "scaled.gguf", "--linear", 4)
    told("convert", tmp_path / "scaled.gguf", "--in-place", "--rope", "none")
    assert read_gguf(tmp_path / "scaled.gguf").get("llama.rope.scaling.type") == "none"


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "[]",
        "3",
        '{"llama.context_length":[4,-1]}',
        '{"llama.context_length":[99,1]}',
        '{"llama.context_length":64}',
        '{"llama.context_length":[8,64]}',
        '{"llama.context_length":[9,[1]]}',
        '{"general.alignment":[4,64]}',
        '{"llama.context_length":[4,"64"]}',
        "[" * 100_000,
    ],
)
def test_a_malformed_memory_is_refused(model: Path, tmp_path: Path, kept: str) -> None:
    told("convert", model, "--in-place", "--yarn", 4)
    gguf = read_gguf(model)
    write_gguf(
        tmp_path / "bad.gguf", gguf.fields | {"ggext.before": Field.of(kept)}, []
    )
    assert "ggext.before in the file is malformed" in refused(
        "convert", tmp_path / "bad.gguf", "--in-place", "--rope", "none"
    )


def test_a_memory_of_a_scaling_is_not_believed(model: Path, tmp_path: Path) -> None:
    told("convert", model, "--in-place", "--yarn", 4)
    gguf = read_gguf(model)
    false = '{"llama.context_length":[4,64],"llama.rope.scaling.factor":[6,4.0]}'
    write_gguf(
        tmp_path / "false.gguf", gguf.fields | {"ggext.before": Field.of(false)}, []
    )
    told("convert", tmp_path / "false.gguf", "--in-place", "--rope", "none")
    assert (
        effective_table(read_gguf(tmp_path / "false.gguf")).inv_freq[-1]
        == effective_table(
            read_gguf(write_random(tmp_path / "fresh.gguf", "llama"))
        ).inv_freq[-1]
    )


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


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A model in three parts, as llama-gguf-split makes them; the first has the metadata and some
    tensors."""
    gguf = read_gguf(write_random(tmp_path / "whole.gguf", "llama"))
    folder = tmp_path / "parts"
    folder.mkdir()
    names = list(gguf.tensors)
    paths = []
    for number in range(3):
        fields = {
            "split.no": Field(ValueType.UINT16, number),
            "split.count": Field(ValueType.UINT16, 3),
            "split.tensors.count": Field(ValueType.INT32, len(names)),
        }
        fields |= (
            gguf.fields
            if number == 0
            else {"general.architecture": gguf.fields["general.architecture"]}
        )
        tensors = [
            TensorToWrite(
                n, t.shape, t.type, t.nbytes, lambda n=n: [gguf.tensor_data(n)]
            )  # type: ignore[misc]
            for n, t in gguf.tensors.items()
            if names.index(n) % 3 == number
        ]
        paths.append(folder / f"model-0000{number + 1}-of-00003.gguf")
        write_gguf(paths[-1], fields, tensors)
    return paths


@pytest.mark.parametrize("given", ["first", "last", "folder"])
def test_parts(parts: list[Path], tmp_path: Path, given: str) -> None:
    pytest.importorskip("llama_cpp")
    named = {"first": parts[0], "last": parts[2], "folder": parts[0].parent}[given]
    before = [digest(path) for path in parts]
    count = read_gguf(parts[0]).get("split.tensors.count")
    output = told("convert", named, "--in-place", *REQUESTS["yarn by tensor"])
    assert f"changed {parts[0]}" in output
    gguf = read_gguf(parts[0])
    assert [gguf.get(f"split.{key}") for key in ("no", "count", "tensors.count")] == [
        0,
        3,
        count + 1,
    ]
    assert [digest(path) for path in parts[1:]] == before[1:]
    told(
        "convert",
        tmp_path / "whole.gguf",
        tmp_path / "new.gguf",
        *REQUESTS["yarn by tensor"],
    )
    np.testing.assert_array_equal(logits(parts[0]), logits(tmp_path / "new.gguf"))
    assert "nothing to repair" in told("repair", named)
    told("undo", named)
    assert [digest(path) for path in parts] == before
    assert sorted(parts[0].parent.iterdir()) == parts


@pytest.mark.parametrize("given", ["first", "last", "folder"])
def test_what_reads_a_model_reads_its_parts(
    parts: list[Path], tmp_path: Path, given: str
) -> None:
    """Whichever is named; what is counted is counted over all of them."""
    pytest.importorskip("llama_cpp")
    named = {"first": parts[0], "last": parts[2], "folder": parts[0].parent}[given]
    told("convert", parts[0], "--in-place", *REQUESTS["yarn by tensor"])
    told(
        "convert",
        tmp_path / "whole.gguf",
        tmp_path / "one.gguf",
        *REQUESTS["yarn by tensor"],
    )
    several, one = (
        json.loads(told("inspect", path, "--json"))
        for path in (named, tmp_path / "one.gguf")
    )
    assert several["size"] == sum(path.stat().st_size for path in parts)
    differ = {"path", "size"}
    assert {k: v for k, v in several.items() if k not in differ} == {
        k: v for k, v in one.items() if k not in differ
    }
    assert "tokens: exact " in told("verify", named)
    several, one = (
        json.loads(told("plan", path, "--json"))
        for path in (named, tmp_path / "one.gguf")
    )
    assert several["ram"]["weights"] == one["ram"]["weights"]
    np.testing.assert_array_equal(logits(named), logits(tmp_path / "one.gguf"))


def test_frequency_factors_of_a_set(model: Path, tmp_path: Path) -> None:
    """Written into the first part, where a later bake in place finds them; read wherever they
    are."""
    pytest.importorskip("llama_cpp")
    told(
        "convert",
        model,
        tmp_path / "set.gguf",
        *REQUESTS["yarn by tensor"],
        "--split",
        "20K",
    )
    first, *others = sorted(tmp_path.glob("set-*.gguf"))
    assert others
    assert "rope_freqs.weight" in read_gguf(first).tensors
    assert "tokens: exact " in told("verify", first)
    told("convert", first, "--in-place", "--ntk", 4)
    assert "tokens: exact " in told("verify", first)
    told("undo", first)
    gguf, last = read_gguf(first), read_gguf(others[-1], any_kind=True)
    factors = bytes(gguf.tensor_data("rope_freqs.weight"))
    content = {
        file.path: [
            TensorToWrite(
                t.name,
                t.shape,
                t.type,
                t.nbytes,
                lambda f=file, n=t.name: [f.tensor_data(n)],
            )  # type: ignore[misc]
            for t in file.tensors.values()
            if t.name != "rope_freqs.weight"
        ]
        for file in (gguf, last)
    }
    content[last.path].append(
        TensorToWrite("rope_freqs.weight", (8,), 0, len(factors), lambda: [factors])
    )
    write_gguf(first, gguf.fields, content[first])
    write_gguf(last.path, last.fields, content[last.path])
    assert "tokens: exact " in told("verify", first)
    others[0].unlink()
    assert f"{others[0]}: No such file" in refused("verify", first)


def test_parts_that_are_not_there(parts: list[Path], tmp_path: Path) -> None:
    parts[0].unlink()
    assert "model-00001-of-00003.gguf is not there" in refused(
        "convert", parts[1], "--in-place", "--yarn", 4
    )
    shutil.copy(tmp_path / "whole.gguf", parts[0].parent)
    assert "model-00001-of-00003.gguf is not there" in refused("undo", parts[0].parent)
    renamed = parts[1].rename(parts[1].with_name("renamed.gguf"))
    message = refused("convert", renamed, "--in-place", "--yarn", 4)
    assert (
        "renamed.gguf is part 2 of 3 and its name does not say so; give it its name back"
        in message
    )
    (tmp_path / "empty").mkdir()
    shutil.copy(tmp_path / "whole.gguf", tmp_path / "second.gguf")
    assert "holds second.gguf, whole.gguf; name one .gguf file" in refused(
        "undo", tmp_path
    )
    with pytest.raises(GgufError, match=r"holds no \.gguf file"):
        metadata_part(tmp_path / "empty")


def test_factors_in_another_part_are_refused(parts: list[Path]) -> None:
    gguf = read_gguf(parts[1])
    data = FACTORS.tobytes()
    content = [TensorToWrite("rope_freqs.weight", (8,), 0, len(data), lambda: [data])]
    write_gguf(parts[1], gguf.fields, content)
    assert "holds rope_freqs.weight; merge the parts first" in refused(
        "convert", parts[0], "--in-place", "--yarn", 4
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
