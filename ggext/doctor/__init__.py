"""What is installed, what the machine allows, what is missing and the command that brings it, and
whether it works."""

from __future__ import annotations

from collections.abc import Callable

from ggext.doctor import backends, machine, runs, versions
from ggext.doctor.report import Finding, Report

__all__ = ["Finding", "Report", "examine"]


def examine(
    progress: Callable[[str], None] = lambda _: None,
    *,
    in_child: bool = True,
    measure: bool = False,
) -> Report:
    """Looks at everything and runs the self-tests. Nothing that is missing or broken raises.

    ``measure``: how fast this processor reads in two ways is measured too, and kept for every
    context to come. ``in_child``: what calls llama.cpp runs in a child process, so that a test that
    ends its process is a finding like any other.
    """
    progress("looking at the versions")
    findings = [*versions.findings(), *machine.findings(), *backends.own_findings()]
    has_llama_cpp = versions.is_installed("llama-cpp-python")
    steps = runs.possible_steps(has_llama_cpp)
    if measure and has_llama_cpp:
        steps += runs.MEASUREMENTS
    findings += runs.findings(steps, progress, in_child=in_child)
    parts = ("versions", "machine", "backends", "tests", "speed")
    return Report(
        tuple(sorted(findings, key=lambda finding: parts.index(finding.part)))
    )
