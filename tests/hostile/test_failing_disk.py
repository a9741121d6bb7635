"""A disk on which calls fail, below everything that ggext does: a library that is loaded before
libc fails them (`faults.c`)."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from failing_disk import SUBJECTS
from paths import SUPPORT

from ggext.checkpoint.named import DEMO_MODEL

pytest.importorskip("llama_cpp")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux loads a library before libc like this"
)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = SUPPORT / "faults.c"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(library)]
    subprocess.run([compiler, *flags, str(source), "-ldl"], check=True)
    return library


@pytest.mark.parametrize("subject", SUBJECTS)
def test_each_call_on_the_disk_fails_in_turn(
    tmp_path: Path, faults: Path, subject: str
) -> None:
    """In one line, and the files are whole, or as they were."""
    script = [SUPPORT / "failing_disk.py", tmp_path / "disk", subject, "1", "100"]
    done = subprocess.run(
        [sys.executable, *map(str, script)],
        env=os.environ | {"LD_PRELOAD": str(faults)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert " refused" in done.stdout


@pytest.mark.parametrize("kind", ["auto", "Q4_K_M"])
def test_a_file_may_not_become_as_large(tmp_path: Path, kind: str) -> None:
    """`ulimit -f`, with which the system ends a program that goes on writing; llama.cpp writes the
    quantized file."""
    out = tmp_path / "out.gguf"
    done = subprocess.run(
        [sys.executable, "-m", "ggext", "convert", DEMO_MODEL, out, "--type", kind],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,) * 2),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("ggext: ")
    assert not list(tmp_path.glob("*.gguf*")) + list(tmp_path.glob(".*out*"))
