"""Changes in place on file systems that move, share or only copy data, mounted for the test where
that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import SUPPORT

#: File system → how room is made there, and how a second file gets its data. "copied" needs no
#: kernel's help.
KINDS = {
    "ext4": ("moved", "copied"),
    "xfs": ("moved", "shared"),
    "btrfs": ("shared", "shared"),
    "tmpfs": ("copied",) * 2,
}
NO_MOUNT = 77
SCRIPT = """
import sys
from pathlib import Path
from crash import main, some_edit
from library_gguf import library_file
from ggext.gguf import inplace
from ggext.gguf.beside import write_beside
from ggext.gguf.open import read_gguf

folder = Path(sys.argv[1])
path = library_file(folder / "x.gguf")
gguf = read_gguf(path)
second = write_beside(folder / "y.gguf", gguf, some_edit(gguf))
with (folder / "y.gguf").open("rb") as file:
    assert bytes(read_gguf(folder / "y.gguf").tensor_data("a")) == bytes(gguf.tensor_data("a"))
print(inplace.apply(gguf, some_edit(gguf, 9000)).how, second)
for file in folder.glob("*.gguf*"):
    file.unlink()
crash = folder / "crash"
crash.mkdir()
main(crash, points=20, seed=3, with_power=True)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_file_system(tmp_path: Path, kind: str) -> None:
    """What is done there is what the file system is good at, and 20 power failures do no harm."""
    if (
        not shutil.which("unshare")
        or subprocess.run(
            ["unshare", "-m", "true"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("file systems cannot be mounted here")
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    mount = f"mount -t tmpfs none {mounted}"
    if kind != "tmpfs":
        if not shutil.which(f"mkfs.{kind}"):
            pytest.skip(f"mkfs.{kind} is not installed")
        image.touch()
        os.truncate(image, 400 << 20)
        subprocess.run(
            [f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True
        )
        mount = f"mount -t {kind} -o loop {image} {mounted}"
    mounting = [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'{mount} || exit {NO_MOUNT}; exec "$@"',
        "sh",
    ]
    done = subprocess.run(
        [*mounting, sys.executable, "-c", SCRIPT, str(mounted)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
    )
    image.unlink(missing_ok=True)
    if done.returncode == NO_MOUNT:
        pytest.skip(f"{kind} cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert tuple(done.stdout.split()) == KINDS[kind]
