"""Families that ggext does not convert: llama.cpp's own converter makes the file, ggext bakes and
verifies it.

The converter is run as a program from a checkout of llama.cpp, with the Python that runs ggext (it
needs torch and transformers there). Its file lies next to the output until the end and is removed
then.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ggext.checkpoint import hub
from ggext.convert import ConvertOptions
from ggext.convert.tensor_types import NATIVE
from ggext.errors import CheckpointError, OutputError, UsageError
from ggext.gguf.writer import check_output

_SCRIPT = "convert_hf_to_gguf.py"


@contextmanager
def converted(options: ConvertOptions, checkout: Path) -> Iterator[ConvertOptions]:
    """``options`` with llama.cpp's file in the model's place, which is there until the block ends.

    ``checkout``: the folder of llama.cpp's source. Raises ``UsageError`` where it is none,
    ``CheckpointError`` with the converter's last line where it fails.
    """
    script = checkout / _SCRIPT
    if not script.is_file():
        raise UsageError(
            f"--via-llama-cpp {checkout}: there is no {_SCRIPT}; give the folder of llama.cpp's "
            "source"
        )
    if not options.model.is_dir():
        raise UsageError(
            f"--via-llama-cpp converts a checkpoint's folder, and {options.model} is none"
        )
    if options.out is not None:
        check_output(options.out, options.force)
    kind = options.type.lower()
    name = hub.model_name(options.model) or options.model.resolve().name
    with _folder_beside(options.out) as folder:
        made = folder / f"{name}.gguf"
        native_type = kind if kind in NATIVE else "auto"
        _run(script, options.model, made, native_type)
        rest = "auto" if kind in NATIVE else options.type
        yield replace(options, model=made, type=rest)


@contextmanager
def _folder_beside(out: Path | None) -> Iterator[Path]:
    parent = Path() if out is None else out.parent
    try:
        folder = tempfile.TemporaryDirectory(prefix=".ggext-", dir=parent)
    except OSError as error:
        raise OutputError(
            f"{parent}: {error.strerror or error}; choose a folder that can be written"
        ) from None
    with folder as path:
        yield Path(path)


def _run(script: Path, model: Path, out: Path, outtype: str) -> None:
    command = [
        sys.executable,
        str(script),
        str(model),
        "--outfile",
        str(out),
        "--outtype",
        outtype,
    ]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode or not out.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1][:300] if lines else "it said nothing"
        raise CheckpointError(
            f"{model}: {script} failed (exit code {done.returncode}): {last}"
        )
