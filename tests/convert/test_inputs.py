"""Files that another program exchanges between the plan and the change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.checkpoints import GOOD
from tiny_gguf import write_random

from ggext.convert import ConvertOptions
from ggext.convert.options import Plan
from ggext.convert.run import execute, plan
from ggext.errors import GgextError, OutputError
from ggext.rope.scaling import RopeScaling

YARN = RopeScaling("yarn", factor=4)
CHANGED = "was changed by another program"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "model.gguf"
    write_random(path, "llama")
    return path


def later(path: Path) -> None:
    """As another program would have written it a second later."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def exchanged(path: Path) -> None:
    """The same header and size, other weights."""
    data = bytearray(path.read_bytes())
    data[-4096:] = bytes(4096)
    path.unlink()
    path.write_bytes(data)
    later(path)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
    later(path)


@pytest.mark.parametrize("change", [exchanged, cut_short], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "options",
    [{}, {"type": "F16"}, {"split": 1 << 16}, {"type": "Q4_0"}, {"in_place": True}],
    ids=["shared", "typed", "split", "quantized", "in place"],
)
def test_a_model_that_is_exchanged_is_not_half_of_a_new_one(
    tmp_path: Path,
    pristine: Path,
    options: dict[str, object],
    change: Callable[[Path], None],
) -> None:
    path = Path(shutil.copy(pristine, tmp_path / "model.gguf"))
    out = None if options.get("in_place") else tmp_path / "out.gguf"
    planned: Plan = plan(ConvertOptions(path, out, YARN, **options))  # type: ignore[arg-type]
    change(path)
    after = path.read_bytes()
    with pytest.raises(GgextError, match=f"{CHANGED}|cut short"):
        execute(planned)
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["model.gguf"]
    assert path.read_bytes() == after


def test_a_checkpoint_that_is_exchanged_is_not_half_of_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOOD, folder)
    planned = plan(ConvertOptions(folder, tmp_path / "out.gguf"))
    exchanged(folder / "model.safetensors")
    with pytest.raises(OutputError, match=CHANGED):
        execute(planned)
    assert not list(tmp_path.glob("**/*.gguf*"))
