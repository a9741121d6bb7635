"""What is installed, what of it is in use, what is missing and the command that brings it, and
whether it works."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ggext._version import __version__
from ggext.errors import GgextError
from ggext.rope.capabilities import LLAMA_CPP

State = Literal["ok", "missing", "wrong"]
#: Extra of ggext → what it is for.
EXTRAS = {
    "run": "chat, demo, K-quants, verify to the logits",
    "hub": "models by their id on the Hugging Face hub",
    "torch": "pickled checkpoints",
    "plot": "--plot",
}
_ALSO = {"transformers": "verify --reference"}  # used where it is there
_REQUIREMENT = re.compile(
    r"([\w.-]+)\s*(?:\[.*?\])?\s*([<>=!~].*?)?\s*(?:;.*?extra == ['\"](\w+)['\"])?"
)
_CACHED = 100  # tokens that the form of the cache is tried on
_ANGLES = 1 << 17  # tokens of context that the native rotation is tried on


@dataclass(frozen=True)
class Finding:
    """``part``: versions, backends or tests. ``value``: what was found. ``remedy``: a command,
    where there is one."""

    part: str
    name: str
    state: State
    value: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong; what is missing may be missing on purpose."""
        return all(finding.state != "wrong" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {"healthy": self.healthy, "findings": [asdict(finding) for finding in self.findings]}


def examine(progress: Callable[[str], None] = lambda _: None) -> Report:
    """Looks at everything and runs the self-tests. Nothing that is missing or broken raises."""
    findings = [*_versions()]
    for line, look in (
        ("looking at llama.cpp", _llama_cpp),
        ("looking for GPUs", _backends),
        ("testing", _tests),
    ):
        progress(line)
        findings += look()
    return Report(tuple(findings))


def _versions() -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    yield Finding(
        "versions", "ggext", "ok", f"{__version__}, Python {platform.python_version()}, {system}"
    )
    for requirement in metadata.requires("ggext") or []:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None or match[1] == "ggext" or (match[3] and match[3] not in EXTRAS):
            continue  # an extra that names another one of ggext's
        yield _version(match[1], match[2] or "", match[3] or "")
    for name, purpose in _ALSO.items():
        yield _found_or_missing(name, f"for {purpose}", f"pip install {name}")


def _version(name: str, wanted: str, extra: str) -> Finding:
    purpose = f"for {EXTRAS[extra]}" if extra else "needed"
    finding = _found_or_missing(
        name, purpose, f'pip install "ggext[{extra}]"' if extra else f'pip install "{name}{wanted}"'
    )
    if finding.state == "missing":
        return (
            finding if extra else Finding("versions", name, "wrong", finding.value, finding.remedy)
        )
    if not satisfies(finding.value, wanted):
        return Finding(
            "versions",
            name,
            "wrong",
            f"{finding.value}, wanted {wanted}",
            f'pip install "{name}{wanted}"',
        )
    return finding


def _found_or_missing(name: str, purpose: str, remedy: str) -> Finding:
    try:
        return Finding("versions", name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding("versions", name, "missing", purpose, remedy)


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version is what ``>=1.2,<3`` or ``==1.2.3`` asks for; only these three signs are
    understood."""
    own = _numbers(version)
    for condition in filter(None, wanted.split(",")):
        sign, number = condition.strip()[:2], _numbers(condition.strip().lstrip("<>="))
        compared = (own > number) - (own < number)
        if not {">=": compared >= 0, "==": compared == 0}.get(sign, compared < 0):
            return False
    return True


def _numbers(version: str) -> list[int]:
    """The release's numbers, without zeros behind: 1.2.0+cpu → [1, 2]."""
    match = re.match(r"[\d.]*", version)
    numbers = [int(part) for part in match[0].split(".") if part] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def _installed() -> bool:
    return bool(_found_or_missing("llama-cpp-python", "", "").state == "ok")


def _llama_cpp() -> Iterator[Finding]:
    from ggext.runtime import devices, llama

    if not _installed():
        return
    again = f'pip install --force-reinstall --no-cache-dir "llama-cpp-python=={llama.VERSION}"'
    try:
        commit, features = devices.commit(), devices.features()
    except GgextError as error:
        yield Finding("backends", "llama.cpp", "wrong", str(error), again)
        return
    known = commit == "unknown" or commit.startswith(LLAMA_CPP[:7])
    value = commit if known else f"{commit}, but ggext reads files as {LLAMA_CPP} does"
    yield Finding(
        "backends", "llama.cpp", "ok" if known else "wrong", value, "" if known else again
    )
    for backend, names in features.items():
        yield Finding("backends", f"built with {backend}", "ok", " ".join(names))


def _backends() -> Iterator[Finding]:
    from ggext import native

    if _installed():
        yield from _devices()
    yield Finding("backends", "rotation", "ok", f"CPU, {native.vectors()}")
    kind = gpu_here()
    if kind in ("cuda", "metal"):
        there = native.available(kind)
        remedy = f"pip install . --config-settings=cmake.define.GGEXT_{kind.upper()}=ON"
        yield Finding(
            "backends",
            f"rotation on {kind}",
            "ok" if there else "missing",
            "" if there else "not built, or it finds no device",
            "" if there else remedy,
        )


def _devices() -> Iterator[Finding]:
    from ggext.runtime import devices, ggml, llama

    try:
        found, memories = ggml.devices(), devices.gpu_memory()
    except GgextError:  # told already
        return
    for device in found:
        memory = next((m for m in memories if m.name == device.name), None)
        free = f", {memory.free >> 20:,} of {memory.total >> 20:,} MiB free" if memory else ""
        yield Finding("backends", f"device {device.name}", "ok", device.description + free)
    kind = gpu_here()
    if kind and not memories:
        flag = {"cuda": "CUDA", "metal": "METAL", "rocm": "HIP"}[kind]
        remedy = (
            f'CMAKE_ARGS="-DGGML_{flag}=on" pip install --force-reinstall --no-deps --no-cache-dir '
            f'"llama-cpp-python=={llama.VERSION}"'
        )
        needs = (
            " (needs the CUDA toolkit's nvcc)"
            if kind == "cuda" and not shutil.which("nvcc")
            else ""
        )
        yield Finding(
            "backends", "llama.cpp on the GPU", "missing", f"built without {kind}{needs}", remedy
        )


def gpu_here(root: Path = Path("/")) -> Literal["cuda", "rocm", "metal"] | None:
    """The kind of GPU that this machine has a driver for."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "metal"
    if (root / "proc/driver/nvidia/version").exists():
        return "cuda"
    return "rocm" if (root / "dev/kfd").exists() else None


def _tests() -> Iterator[Finding]:
    yield _test("native rotation", _try_rotation)
    if _installed():
        yield _test("form of the cache", _try_cache)
        yield _test("embedded model", _try_model)


def _test(name: str, attempt: Callable[[], tuple[bool, str]]) -> Finding:
    try:
        passed, value = attempt()
    except GgextError as error:
        passed, value = False, str(error)
    return Finding("tests", name, "ok" if passed else "wrong", value)


def _try_rotation() -> tuple[bool, str]:
    from ggext.proof.kernels import check_kernels
    from ggext.rope.methods import make_table
    from ggext.rope.scaling import RopeGeometry, RopeScaling

    geometry = RopeGeometry(
        n_rot=128, head_dim=128, base=500_000.0, layout="neox", trained_context=_ANGLES
    )
    checks = check_kernels(make_table(RopeScaling("none"), geometry), geometry)
    worst = max(check.value for check in checks)
    return all(
        check.passed for check in checks
    ), f"{worst:.1e} off float64 at most, to position {_ANGLES:,}"


def _try_cache() -> tuple[bool, str]:
    """llama.cpp's undocumented form of cached tokens, and how it rotates keys: what raises is
    wrong."""
    from ggext.demo import TRAINED, bake
    from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions

    with (
        tempfile.TemporaryDirectory(prefix="ggext-doctor-") as folder,
        Model.open(bake(Path(folder), "none", TRAINED)) as model,
        Session(model, SessionOptions(memory=MemoryOptions("stream"))) as session,
    ):
        session.evaluate(range(_CACHED))
        cache = session.cache
        block = cache.take(0, _CACHED)
        cache.remove(0, _CACHED)
        cache.put(block)
        turned = cache.rotation_error()
    return (
        True,
        (
            f"{_CACHED} tokens read as they were written; keys turned {turned:.1e} off "
            "llama.cpp's at most"
        ),
    )


def _try_model() -> tuple[bool, str]:
    """The whole way: convert with a scaling, verify the file and llama.cpp's kernels and graph,
    answer a question."""
    from ggext.demo import spot_check

    with tempfile.TemporaryDirectory(prefix="ggext-doctor-") as folder:
        example = spot_check(Path(folder))
    said = example.answers["yarn"]
    right = f"it should say {example.right!r}"
    return said == example.right, f"{example.question} {said}" + (
        "" if said == example.right else f" ({right})"
    )
