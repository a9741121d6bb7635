"""Models in several files, changed in place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from changed_in_place import FACTORS, REQUESTS, digest, logits, refused, told
from tiny_gguf import write_random

from ggext.errors import GgufError
from ggext.gguf.open import read_gguf
from ggext.gguf.shards import metadata_part
from ggext.gguf.types import Field, ValueType
from ggext.gguf.writer import TensorToWrite, write_gguf


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
