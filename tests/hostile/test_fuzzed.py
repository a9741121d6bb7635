"""Files that the model fuzzer found on December 1, by what was wrong in them: each is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_gguf

from ggext.convert import ConvertOptions, plan
from ggext.errors import GgextError
from ggext.gguf.open import read_gguf


@pytest.mark.parametrize("arch", ["bloom", "gpt2", "nemotron_h"])
def test_a_context_that_is_a_list(arch: str, tmp_path: Path) -> None:
    """Of models that do not rotate."""
    keys = {f"{arch}.context_length": [64, 64]}
    path = tiny_gguf.write_random(tmp_path / "odd.gguf", arch, extra_keys=keys)
    assert read_gguf(path).arch == arch
    with pytest.raises(GgextError, match="context_length is"):
        plan(ConvertOptions(path, tmp_path / "out.gguf"))
