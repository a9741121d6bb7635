"""The embedded model with each method baked."""

from __future__ import annotations

from pathlib import Path

import pytest
from rewriting import rewritten
from verified import METHODS

from ggext.convert import ConvertOptions, convert


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model (trained context 256) with each method baked."""
    folder = tmp_path_factory.mktemp("baked")
    found = {name: folder / f"{name}.gguf" for name in METHODS}
    for name, rope in METHODS.items():
        # a gain stays in the keys here, where verify has to see it
        encoding = "keys" if name in ("yarn", "yarn-7.5", "linear-gain") else None
        convert(ConvertOptions(Path("demo"), found[name], rope, encoding=encoding))
    return found


@pytest.fixture(scope="module")
def upstream(files: dict[str, Path]) -> Path:
    """What llama.cpp's own converter makes of the request in ``yarn-betas``: keys that no one
    reads."""
    scaling = "llama.rope.scaling."
    keys = {
        "type": "yarn",
        "factor": 4.0,
        "yarn_attn_factor": 1.0,
        "yarn_beta_fast": 16.0,
        "yarn_beta_slow": 2.0,
    }
    changes = {scaling + key: value for key, value in keys.items()}
    out = files["yarn-betas"].with_name("upstream.gguf")
    return rewritten(
        files["yarn-betas"],
        out,
        changes,
        drop=("rope_freqs.weight", f"{scaling}attn_factor"),
    )
