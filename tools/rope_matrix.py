"""Every scaling on every family: what is written, and how far the logits are from transformers'.

``python tools/rope_matrix.py`` (some minutes) makes docs/rope-parity.md; ``test_rope_matrix.py``
holds that page to the code. ``--new`` measures only the families that the page lacks.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ggext.converters import family_of
from wrap_pages import wrapped

from ggext.checkpoint.config import Config, read_config
from ggext.convert import ConvertOptions, convert
from ggext.errors import GgextError, RopeError
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT
from ggext.rope.config import read_rope
from ggext.rope.encode import encode
from ggext.rope.encoding import Encoding, EncodingName
from ggext.rope.scaling import RopeGeometry, RopeScaling
from ggext.verify import verify

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from family_rows import ROWS  # noqa: E402
from paths import SHARED  # noqa: E402
from tiny import make_model  # noqa: E402

PAGE = ROOT / "docs" / "rope-parity.md"
CONFIGS = SHARED / "configs"
FACTOR, CONTEXT = 4, 64


def _yarn(**parameters: Any) -> Callable[[RopeGeometry], RopeScaling]:
    return lambda _: RopeScaling("yarn", factor=FACTOR, **parameters)


def _longrope(geometry: RopeGeometry) -> RopeScaling:
    pairs = range(geometry.n_rot // 2)
    return RopeScaling(
        "longrope",
        factor=FACTOR,
        original_context=CONTEXT,
        short_factors=tuple(1 + 0.02 * i for i in pairs),
        long_factors=tuple(1.05 + 0.3 * i for i in pairs),
    )


#: Column → the request.
REQUESTS: dict[str, Callable[[RopeGeometry], RopeScaling]] = {
    "linear": lambda _: RopeScaling("linear", factor=FACTOR),
    "NTK": lambda _: RopeScaling("ntk", factor=FACTOR),
    "YaRN": _yarn(),
    "gain 1": _yarn(attention_factor=1.0),
    "betas 16/2, gain 1": _yarn(beta_fast=16.0, beta_slow=2.0, attention_factor=1.0),
    "mscale 1/0.8": _yarn(mscale=1.0, mscale_all_dim=0.8),
    "not truncated": _yarn(truncate=False),
    "Llama 3": lambda _: RopeScaling("llama3", factor=FACTOR),
    "LongRoPE": _longrope,
}


@dataclass(frozen=True)
class Shape:
    """A tiny model of a family, without a scaling."""

    model_type: str
    config: dict[str, Any]


def shapes() -> dict[str, Shape]:
    """The first row of each family in the parity table."""
    found: dict[str, Shape] = {}
    for row in ROWS.values():
        # these do not rotate, or transformers cannot run them without a YaRN of their own
        if not row.rotates or row.model_type in ("ministral3", "mistral4"):
            continue
        config = dict(row.config)
        if row.rope is None:  # it has a scaling of its own
            own = {
                "max_position_embeddings": CONTEXT,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            }
            config |= own | {
                k: CONTEXT for k in ("original_max_position_embeddings",) if k in config
            }
        found.setdefault(row.model_type, Shape(row.model_type, config))
    return dict(sorted(found.items()))


def geometry_of(checkpoint: Path) -> RopeGeometry:
    return family_of(read_config(checkpoint)).rope().geometry


def encoded(checkpoint: Path, request: str) -> tuple[RopeScaling, Encoding | RopeError]:
    """What would be written for a request, or why nothing is."""
    family = family_of(read_config(checkpoint))
    geometry = family.rope().geometry
    scaling = REQUESTS[request](geometry)
    try:
        return scaling, encode(scaling, geometry, family.arch)
    except RopeError as error:
        return scaling, error


def form(found: Encoding | RopeError) -> str:
    """A cell without its figure."""
    if isinstance(found, RopeError):
        words = str(found).split("frequency error of ")
        gain = words[1].split("gain error of ")[1].split(" ")[0]
        frequency = words[1].split(" ")[0]
        return f"none: {frequency}" if float(frequency) > 1e-6 else f"none: gain {gain}"
    if found.elsewhere is None:
        return found.name
    here = "" if found.exactness.is_exact else f" {found.exactness.frequency_error:.2g}"
    return f"runtime{here}, elsewhere {found.elsewhere.frequency_error:.2g}"


def measured(
    checkpoint: Path, scaling: RopeScaling, name: EncodingName, folder: Path
) -> float:
    """Mean KL beyond the original context, nats, through llama.cpp in a context of ggext's."""
    convert(
        ConvertOptions(
            checkpoint, folder / "out.gguf", scaling, encoding=name, force=True
        )
    )
    checks = verify(
        folder / "out.gguf", checkpoint, levels=["logits"], tolerance=math.inf
    ).checks
    return next(check.value for check in checks if "beyond" in check.quantity)


def written() -> dict[str, list[str]]:
    """The page's rows by family."""
    lines = PAGE.read_text("utf-8").split(PUBLISHED)[0].splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line[:2] == "| "
    ]
    return {row[0]: row for row in cells[2:]}


def rows(folder: Path, known: dict[str, list[str]]) -> Iterator[list[str]]:
    for name, shape in shapes().items():
        if name in known:
            yield known[name]
            continue
        checkpoint = make_model(
            folder / f"a-{name.replace('phi3', 'phi')}",
            shape.model_type,
            **shape.config,
        )
        cells = []
        for request in REQUESTS:
            scaling, found = encoded(checkpoint, request)
            cell = form(found)
            if isinstance(found, RopeError):
                pass  # nothing is written, so that there is nothing to judge
            elif (
                scaling.truncate is False
                and geometry_of(checkpoint).sliding_base is not None
            ):
                cell = f"not judged {cell}"
            else:
                cell = f"{measured(checkpoint, scaling, found.name, folder):.0e} {cell}"
            cells.append(cell)
        yield [name, *cells]


INTRODUCTION = """\
# Which scaling is exact on which family

Made by `python tools/rope_matrix.py`; `tests/parity/test_rope_matrix.py` fails when it is stale.

Each cell is a tiny random model of the family's shape (float32, original context {context}, factor {factor}).
It is converted, run by llama.cpp {version}, and compared with transformers on the same tokens.

- The number is the mean KL from transformers' logits, in nats, over the tokens beyond the original context.
- `keys` and `tensor` are right in every llama.cpp program.
- `runtime, elsewhere E`: the architecture reads no key for it. The file is right in ggext's own contexts.
  In other programs its frequencies are off by up to E (relative).
- `runtime D, elsewhere E`: not even ggext's contexts can say it. D is the worst error of a frequency in them.
  `ggext verify` fails such a file and says so.
- `not judged`: transformers 5.23 ignores `truncate` where kinds of layers have rope parameters of their own.
- `none: D`: `ggext convert` refuses. The nearest file would have a frequency that is off by D, or a gain.

The KL of Gemma, Falcon, GPT-NeoX, Phi and StarCoder comes from ggml's GELU, a table of float16. With the same table
in transformers it is below 5e-7 (`tests/parity/test_families.py`). Dynamic NTK changes with the length of the text.
llama.cpp cannot do that, so it is refused everywhere.

"""

PUBLISHED = """
# What published configurations need

The scaling that the file itself asks for (configurations of published checkpoints), as `ggext convert` writes it.

"""
#: Published configuration's model_type → the architecture of llama.cpp that runs it; of the others
#: none is known here.
_ARCH = {"ministral3": "mistral3", "internlm2": "llama", "minicpm": "llama"}


def published(configs: Path) -> Iterator[list[str]]:
    """Of each configuration what is written, and the errors in ggext's contexts and elsewhere."""
    for path in sorted(configs.glob("*.json")):
        config = Config(json.loads(path.read_text()), path.name)
        kind = config.values["model_type"]
        try:
            rope = (
                read_rope(config.values, "norm", path.name)
                if kind in _ARCH
                else family_of(config).rope()
            )
            found: Encoding | GgextError = encode(
                rope.scaling, rope.geometry, _ARCH.get(kind) or family_of(config).arch
            )
        except GgextError as error:
            found = error
            words = str(error).removeprefix(f"{path.name}: ").split(";")[0]
            words = "no converter" if "not a family" in words else f"refused: {words}"
            yield [path.stem, kind, "", words, "", ""]
            continue
        errors = [
            f"{c.frequency_error:.1g}"
            for c in (found.exactness, found.elsewhere or found.exactness)
        ]
        yield [path.stem, kind, rope.scaling.method, found.name, *errors]


def page(folder: Path, known: dict[str, list[str]]) -> str:
    introduction = INTRODUCTION.format(
        context=CONTEXT, factor=FACTOR, version=LLAMA_CPP_COMMIT
    )
    return (
        introduction
        + table(["family", *REQUESTS], rows(folder, known))
        + PUBLISHED
        + published_table()
    )


def published_table() -> str:
    head = [
        "file",
        "model_type",
        "method",
        "encoding",
        "worst frequency error in ggext",
        "elsewhere",
    ]
    return table(head, published(CONFIGS))


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """In Markdown."""
    return "".join(
        f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows)
    )


if __name__ == "__main__":
    with TemporaryDirectory() as made:
        known = written() if "--new" in sys.argv else {}
        PAGE.write_text(wrapped(page(Path(made), known)))
