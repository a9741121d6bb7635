"""Which packages are there, and whether they are the ones that ggext asks for."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from ggext._version import __version__
from ggext.doctor.report import Finding

#: Extra of ggext → what it is for.
EXTRAS = {
    "run": "chat, demo, K-quants, verify to the logits",
    "reference": "verify --reference",
    "hub": "models by their id on the Hugging Face hub",
    "torch": "pickled checkpoints",
    "plot": "--plot",
}


def findings() -> Iterator[Finding]:
    """One for ggext, and one for each package that it or one of its extras asks for."""
    system = f"{platform.system()} {platform.machine()}"
    value = f"{__version__}, Python {platform.python_version()}, {system}"
    yield Finding("versions", "ggext", "ok", value)
    seen: set[str] = set()
    for requirement in map(Requirement, metadata.requires("ggext") or []):
        if requirement.name == "ggext" or requirement.name in seen:
            # An extra that names another one of ggext's, or a package of two extras.
            continue
        extra = _extra_of(requirement)
        if extra is not None:
            seen.add(requirement.name)
            yield _version(requirement, extra)


def _extra_of(requirement: Requirement) -> str | None:
    """The extra of `EXTRAS` that brings a package, "" where it is always needed; None for a package
    that is not needed here, or by developers alone."""
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return ""
    return next((extra for extra in EXTRAS if marker.evaluate({"extra": extra})), None)


def _version(requirement: Requirement, extra: str) -> Finding:
    name = requirement.name
    exact = f'pip install "{name}{requirement.specifier}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if not extra:
            return Finding("versions", name, "wrong", "needed", exact)
        remedy = f'pip install "ggext[{extra}]"'
        return Finding("versions", name, "missing", f"for {EXTRAS[extra]}", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        value = f"{version}, but ggext needs {requirement.specifier}"
        return Finding("versions", name, "wrong", value, exact)
    return Finding("versions", name, "ok", version)


def is_installed(name: str) -> bool:
    """Whether a distribution of that name is there."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
