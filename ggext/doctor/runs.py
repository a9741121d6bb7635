"""Runs what calls native code, by default in a child process, whose death is a finding."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from ggext.doctor import backends, reading, selftests
from ggext.doctor.report import Finding
from ggext.errors import GgextError
from ggext.runtime.channel import Channel
from ggext.runtime.child import Child

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
#: The steps that are only taken where they are asked for: they take minutes.
MEASUREMENTS: dict[str, Step] = {"speed of reading": reading.findings}
_ALONE = ("native rotation",)
_END = "end"
_PATIENCE = 900.0  # seconds for all of them


def possible_steps(has_llama_cpp: bool) -> list[str]:
    """The steps that can run here."""
    return [name for name in STEPS if has_llama_cpp or name in _ALONE]


def findings(
    names: Sequence[str], progress: Callable[[str], None], *, in_child: bool
) -> Iterator[Finding]:
    """What the steps find."""
    remaining = list(names)
    while remaining and in_child:
        try:
            child = Child("ggext.doctor.runs:answer")
        except GgextError:  # a host that cannot start a process: then here
            break
        with child:
            child.send(remaining)
            findings, remaining = _follow(child, remaining, progress)
        yield from findings
    for name in remaining:
        progress(name)
        yield from (STEPS | MEASUREMENTS)[name]()


def _follow(
    child: Child, names: Sequence[str], progress: Callable[[str], None]
) -> tuple[list[Finding], list[str]]:
    """What a child finds, and the steps that it did not come to before it died."""
    findings: list[Finding] = []
    remaining = list(names)
    step = "start of a process"
    timer = threading.Timer(_PATIENCE, child.kill)
    timer.daemon = True
    timer.start()
    try:
        while (message := child.receive()) is not None:
            if "finding" in message:
                findings.append(Finding(**message["finding"]))
                continue
            step = message["step"]
            if step == _END:
                break
            remaining.remove(step)
            progress(step)
    finally:  # also after Ctrl-C: a timer that runs on holds the process until it rings
        timer.cancel()
    if step == _END:
        return findings, []
    if remaining == names:  # not one step began: the next child would do the same
        remaining = []
    return [*findings, Finding("tests", step, "wrong", str(child.died()))], remaining


def answer(channel: Channel) -> None:
    """The child: a message before each step, and one for each finding."""
    for name in channel.receive() or []:
        channel.send({"step": name})
        for finding in (STEPS | MEASUREMENTS)[name]():
            channel.send({"finding": asdict(finding)})
    channel.send({"step": _END})
