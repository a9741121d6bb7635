"""Runs what calls native code, by default in a child process, whose death is a finding."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from ggext.doctor import backends, selftests
from ggext.doctor.report import Finding
from ggext.runtime import children, deaths

Step = Callable[[], Iterator[Finding]]

#: Step → what it looks at; those in `_ALONE` need no llama.cpp.
STEPS: dict[str, Step] = {
    "matrix kernels": backends.kernels,
    "llama.cpp": backends.llama_cpp,
    "devices": backends.devices,
    "native rotation": selftests.rotation,
    "form of the cache": selftests.cache,
    "embedded model": selftests.model,
}
_ALONE = ("native rotation",)
_PATIENCE = 900.0  # seconds for all of them


def possible_steps(has_llama_cpp: bool) -> list[str]:
    """The steps that can run here."""
    return [name for name in STEPS if has_llama_cpp or name in _ALONE]


def findings(
    names: list[str], progress: Callable[[str], None], *, in_child: bool
) -> Iterator[Finding]:
    """What the steps find."""
    command = children.module_command("ggext.doctor") if in_child else None
    if command is None:
        for name in names:
            progress(name)
            yield from STEPS[name]()
        return
    while names:
        found, names = _in_child(command, names, progress)
        yield from found


def _in_child(
    command: Sequence[str], names: Sequence[str], progress: Callable[[str], None]
) -> tuple[list[Finding], list[str]]:
    """What one child found, and the steps that it did not come to."""
    found: list[Finding] = []
    left = list(names)
    step = "start"
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [*command, *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=children.environment(),
        )
        timer = threading.Timer(_PATIENCE, child.kill)
        timer.start()
        with child:
            assert child.stdout is not None
            for line in child.stdout:
                said = json.loads(line)
                if "step" not in said:
                    found.append(Finding(**said))
                    continue
                step = said["step"]
                left = left[left.index(step) + 1 :]
                progress(step)
        timer.cancel()
        errors.seek(0)
        words = errors.read().decode("utf-8", "replace")
    if child.returncode == 0:
        return found, []
    if step == "start":  # not one step began: the next child would do the same
        left = []
    value = f"ended the process: {deaths.in_words(child.returncode)}{_reason(words)}"
    return [*found, Finding("tests", step, "wrong", value)], left


def _reason(words: str) -> str:
    """What the child wrote at the end of its life, in one line: ggml's assertion, or the last."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    telling = [line for line in lines if "GGML_ASSERT" in line or "Error" in line]
    line = next(iter([*telling, *lines[-1:]]), "")
    return f": {line}" if line else ""


def run_in_this_process(names: Sequence[str]) -> None:
    """The child: a line of JSON before each step, and one for each finding."""
    for name in names:
        print(json.dumps({"step": name}), flush=True)  # noqa: T201 - the protocol
        for finding in STEPS[name]():
            print(json.dumps(asdict(finding)), flush=True)  # noqa: T201 - the protocol
