"""The families that ggext converts, as docs/families.md shows them: from converters/ and the test
rows.

python tools/families_table.py > docs/families.md
"""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.converters import REFUSED, known_families
from wrap_pages import wrapped

from ggext.llama_cpp_facts.names import NOT_WRITTEN
from ggext.rope.capabilities import UNROTATED

if TYPE_CHECKING:
    from family_rows import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

HEAD = """# Families

<!-- made by `python tools/families_table.py > docs/families.md`; a test fails when it is stale -->

A checkpoint's family is the `model_type` in its config.json. Each row below is tested. The tests make small random
models of the family's shape with transformers and convert them. Then they hold llama.cpp's logits to transformers' on
the same tokens, in the trained window and beyond it. Beyond it, YaRN by 4 is taken, or the scaling that the family's
checkpoints have. Bound is the most that the mean KL divergence of the next token may be, in nats, with float32 weights.
The RoPE operations that llama.cpp executes are checked with them, one by one.

| `model_type` | llama.cpp | models | variants in the tests | bound |
|---|---|---|---|---|
"""

ARCHITECTURES = """
## Every text architecture of llama.cpp

All that the pinned llama.cpp has a name for and that continues text. Exact: each row above that is converted to it has
at most this mean KL from transformers, in nats. Which scaling is exact where: [rope-parity.md](rope-parity.md).

| llama.cpp | state |
|---|---|
"""

MIDDLE = """
Where llama.cpp cannot compute what a configuration asks for, `ggext convert` refuses and names the key.

## What to know

"""


def table() -> str:
    from family_rows import ROWS

    lines, remarks = [], []
    for name in known_families():
        module = import_module(f"ggext.converters.{name}")
        first, *rest = (getdoc(module) or "").split("\n\n")
        rows = {test: row for test, row in ROWS.items() if row.family == name}
        variants = ", ".join(_variant(name, test) for test in rows)
        lines.append(
            f"| `{name}` | {module.FAMILY.arch} | {_line(first)} | {variants} | "
            f"{_bounds(name, rows)} |"
        )
        remarks += [f"- `{name}`: {_line(paragraph)}" for paragraph in rest]
    states = [
        f"| {arch} | {state} |" for arch, state in sorted(architectures().items())
    ]
    return wrapped(
        HEAD
        + "\n".join(lines)
        + "\n"
        + MIDDLE
        + "\n".join(remarks)
        + "\n"
        + ARCHITECTURES
        + "\n".join(states)
        + "\n"
    )


def architectures() -> dict[str, str]:
    """Text architecture of llama.cpp → its state."""
    from family_rows import ROWS

    states = dict(NOT_WRITTEN) | {
        arch: f"refused: {why}" for arch, why in REFUSED.items()
    }
    states = {arch: state for arch, state in states.items() if arch in NOT_WRITTEN}
    rows: dict[str, list[Row]] = {}
    for name in known_families():
        family = import_module(f"ggext.converters.{name}").FAMILY
        for arch in (family.arch, *family.further_archs):
            rows.setdefault(arch, []).extend(
                row for row in ROWS.values() if row.family == name
            )
    for arch, found in rows.items():
        exact = max(row.bound for row in found if row.exact)
        states[arch] = f"exact: {_figure(exact)}"
        others = [row.bound for row in found if not row.exact]
        if others:
            states[arch] += f"; not with its own scaling: {_figure(max(others))}"
        if arch in UNROTATED:
            states[arch] += f"; does not rotate: {UNROTATED[arch]}"
    return states


def _line(paragraph: str) -> str:
    return " ".join(paragraph.replace("``", "`").split())


def _variant(name: str, test: str) -> str:
    return test.removeprefix(name).strip("-_") or "plain"


def _bounds(name: str, rows: dict[str, Row]) -> str:
    shown = {test: _figure(row.bound) for test, row in rows.items()}
    if not shown:
        return "another name, no test of its own"
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return ", ".join(f"{_variant(name, test)} {bound}" for test, bound in shown.items())


def _figure(bound: float) -> str:
    return f"{bound:.2g}".replace("e-0", "e-")


if __name__ == "__main__":
    sys.stdout.write(table())
