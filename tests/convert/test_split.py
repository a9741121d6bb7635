"""``--split``: several files in llama.cpp's form, which llama.cpp opens as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import make_llama

from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.errors import OutputError
from ggext.gguf.open import read_gguf
from ggext.gguf.split import part_path
from ggext.gguf.types import ValueType

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(
        tmp_path_factory.mktemp("models") / "wide",
        hidden_size=256,
        intermediate_size=512,
    )


def logits(path: Path, tokens: list[int]) -> np.ndarray[Any, Any]:
    """llama.cpp's, after the last of the tokens: plain, without ggext's checks of one file."""
    import ctypes

    from ggext.runtime.llama import lib

    llama = lib()
    model = llama.llama_model_load_from_file(
        str(path).encode(), llama.llama_model_default_params()
    )
    assert model, f"llama.cpp does not open {path}"
    params = llama.llama_context_default_params()
    params.n_ctx = 64
    context = llama.llama_init_from_model(model, params)
    ids = (ctypes.c_int32 * len(tokens))(*tokens)
    batch = llama.llama_batch_get_one(ids, len(tokens))
    assert llama.llama_decode(context, batch) == 0
    n = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    result = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (n,)).copy()
    llama.llama_free(context)
    llama.llama_model_free(model)
    return result


@pytest.mark.parametrize("kind", ["f16", "Q4_K_M"])
def test_llama_cpp_opens_the_set_as_one(wide: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("llama_cpp")
    convert(ConvertOptions(wide, tmp_path / "one.gguf", type=kind))
    done = convert(
        ConvertOptions(wide, tmp_path / "set.gguf", type=kind, split=400_000)
    )
    count = len(done.files)
    assert count > 2
    assert [f.name for f in done.files] == [
        f"set-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)
    ]
    assert not (tmp_path / "set.gguf").exists()
    assert not list(tmp_path.glob(".*.part"))
    tokens = [5, 9, 200, 3, 77]
    assert np.array_equal(
        logits(done.files[0], tokens), logits(tmp_path / "one.gguf", tokens)
    )


def test_keys_and_sizes_of_the_parts(wide: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.gguf"
    convert(ConvertOptions(wide, one))
    files = convert(ConvertOptions(wide, tmp_path / "set.gguf", split=700_000)).files
    whole, parts = read_gguf(one), [read_gguf(f, any_kind=True) for f in files]
    found: list[str] = []
    for number, part in enumerate(parts):
        stated = {
            key: field for key, field in part.fields.items() if key.startswith("split.")
        }
        assert [
            stated[f"split.{k}"].value for k in ("no", "count", "tensors.count")
        ] == [
            number,
            len(files),
            len(whole.tensors),
        ]
        assert [
            stated[f"split.{k}"].type for k in ("no", "count", "tensors.count")
        ] == [
            ValueType.UINT16,
            ValueType.UINT16,
            ValueType.INT32,
        ]
        sizes = [info.nbytes for info in part.tensors.values()]
        assert sum(sizes) <= 700_000 or len(sizes) == 1
        found += part.tensors
        for name in part.tensors:
            assert bytes(part.tensor_data(name)) == bytes(whole.tensor_data(name))
    assert found == list(whole.tensors)
    assert {
        k: f for k, f in parts[0].fields.items() if not k.startswith("split.")
    } == whole.fields
    assert all(
        set(part.fields)
        <= {f"split.{k}" for k in ("no", "count", "tensors.count")} | {"ggext.padding"}
        for part in parts[1:]
    )


def test_one_part_is_a_set_too(wide: Path, tmp_path: Path) -> None:
    """As llama-gguf-split does: who asks for a set finds its names."""
    files = convert(ConvertOptions(wide, tmp_path / "set.gguf", split=10**9)).files
    assert [f.name for f in files] == ["set-00001-of-00001.gguf"]
    assert read_gguf(files[0]).get("split.count") == 1


def test_a_set_is_replaced_only_with_force(wide: Path, tmp_path: Path) -> None:
    options = ConvertOptions(wide, tmp_path / "a[1].gguf", split=700_000)
    files = convert(options).files
    with pytest.raises(
        OutputError, match=r"a\[1\]-00001-of-\d{5}\.gguf exists; use force=True"
    ):
        convert(options)
    before = [f.read_bytes() for f in files]
    assert (
        convert(
            ConvertOptions(wide, tmp_path / "a[1].gguf", split=700_000, force=True)
        ).files
        == files
    )
    assert [f.read_bytes() for f in files] == before


@pytest.mark.parametrize("failing", range(4))
def test_a_failure_leaves_no_part_and_the_old_set(
    wide: Path, tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at one part: nothing of the new set is there, all of the old one is."""
    from ggext.gguf import split

    out = tmp_path / "set.gguf"
    files = convert(ConvertOptions(wide, out, split=700_000)).files
    before, write, calls = (
        [f.read_bytes() for f in files],
        split.write_arranged,
        iter(range(100)),
    )

    def full(*arguments: Any) -> None:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(split, "write_arranged", full)
    with pytest.raises(OutputError, match="No space left on device"):
        convert(ConvertOptions(wide, out, type="f16", split=350_000, force=True))
    assert [f.read_bytes() for f in files] == before
    assert {f for f in tmp_path.iterdir() if f.name != "home"} == set(files)


def test_too_many_parts(tmp_path: Path) -> None:
    from ggext.gguf.split import write_parts
    from ggext.gguf.writer import TensorToWrite

    tensors = [
        TensorToWrite(f"t{i}", (1,), 0, 4, lambda: [bytes(4)]) for i in range(65_536)
    ]
    with pytest.raises(OutputError, match="would be 65,536 files; 65,535 are allowed"):
        write_parts(tmp_path / "x.gguf", {}, tensors, 4)


@pytest.mark.parametrize("size", ["0G", "4", "4X", "-1G", "G", "1,5G", "٤G"])
def test_sizes_that_are_none(wide: Path, tmp_path: Path, size: str) -> None:
    result = CliRunner().invoke(
        main, ["convert", str(wide), str(tmp_path / "x.gguf"), "--split", size]
    )
    assert result.exit_code == 2
    assert "is not a size such as 4G, 500M or 1.5GiB" in result.output


def test_the_command_names_every_file(wide: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["convert", str(wide), str(tmp_path / "x.gguf"), "--split", "2M"]
    )
    assert result.exit_code == 0, result.output
    files = sorted(tmp_path.glob("x-*.gguf"))
    assert [
        line for line in result.output.splitlines() if line.startswith("wrote")
    ] == [f"wrote {f} ({f.stat().st_size:,} bytes)" for f in files]
    assert files[0] == part_path(tmp_path / "x.gguf", 0, len(files))
