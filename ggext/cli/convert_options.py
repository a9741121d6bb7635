"""What ``ggext convert`` can be asked for, in the groups in which --help shows it."""

from __future__ import annotations

from pathlib import Path

import click

from ggext.cli.groups import group
from ggext.cli.numbers import NUMBER, SIZE, TOKENS
from ggext.rope.scaling import Method

METHODS: tuple[Method, ...] = ("yarn", "linear", "ntk", "llama3")

#: A method with its factor, or the context that it is to reach.
BY_FACTOR = (
    click.option(
        "--yarn", type=NUMBER, metavar="F", help="YaRN: F times the trained context."
    ),
    click.option(
        "--ntk", type=NUMBER, metavar="F", help="NTK-aware: F times the context."
    ),
    click.option(
        "--linear", type=NUMBER, metavar="F", help="Position interpolation by F."
    ),
    click.option(
        "--llama3", type=NUMBER, metavar="F", help="Llama 3.1's scaling by F."
    ),
    click.option(
        "-c",
        "--target-context",
        type=TOKENS,
        metavar="N",
        help="The smallest factor that reaches N tokens (16384, 16k); YaRN if no method is named.",
    ),
)
scaling = group(
    "Scaling (without any: what the model says itself)",
    *BY_FACTOR,
    click.option(
        "--rope",
        type=click.Choice(["none", *METHODS]),
        help="A method by name: none takes the scaling out; another takes its factor from "
        "--target-context.",
    ),
    click.option(
        "--recipe",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE.toml",
        help="Repeat the request in FILE; with a scaling option, write the request to FILE.",
    ),
)
output = group(
    "Output",
    click.option(
        "--type",
        "type_",
        default="auto",
        metavar="TYPE",
        show_default=True,
        help="auto (as in the model), f32, f16, bf16, q8_0, or one of llama.cpp's such as Q4_K_M.",
    ),
    click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="PATTERN=TYPE",
        help="Another type for tensors with such names, * standing for anything: "
        "output.weight=f16. Repeatable, the last that matches holds.",
    ),
    click.option(
        "--imatrix",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="An importance matrix of llama.cpp's imatrix tool, for its quantizer.",
    ),
    click.option(
        "--split",
        type=SIZE,
        metavar="SIZE",
        help="Several files, OUT-00001-of-0000N.gguf, of at most SIZE (4G, 500M) of tensors each.",
    ),
    click.option(
        "--in-place",
        is_flag=True,
        help="Change MODEL itself, a GGUF file, one of its parts or their folder: the data stays, "
        "ggext undo MODEL takes it back.",
    ),
    click.option(
        "--card",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Measure what was written as ggext eval does, within 10 minutes, and write it as a "
        "section for a model card.",
    ),
    click.option("--force", is_flag=True, help="Replace an output that exists."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print the plan and write nothing; of a model on the hub, fetch all but the weights.",
    ),
)
source = group(
    "Model",
    click.option(
        "--revision", metavar="REV", help="Branch, tag or commit of a model on the hub."
    ),
    click.option(
        "--via-llama-cpp",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="For a family that ggext does not convert: run the converter in this checkout of "
        "llama.cpp, then bake and verify its file.",
    ),
)
#: Parameters of a method, under the names of `RopeScaling`.
PARAMETERS = (
    click.option(
        "--original-context",
        type=TOKENS,
        metavar="N",
        help="Tokens that the unscaled model was trained for, if the model says otherwise.",
    ),
    click.option(
        "--attention-factor",
        type=NUMBER,
        metavar="M",
        help="Gain on cos and sin, in place of the method's; alone, of the model's own scaling.",
    ),
    click.option(
        "--beta-fast",
        type=NUMBER,
        metavar="R",
        help="YaRN: keep pairs with more than R turns [32].",
    ),
    click.option(
        "--beta-slow",
        type=NUMBER,
        metavar="R",
        help="YaRN: interpolate pairs with fewer than R turns [1].",
    ),
    click.option(
        "--truncate/--no-truncate",
        default=None,
        help="YaRN: round the range of blended pairs [truncate].",
    ),
    click.option(
        "--mscale",
        type=NUMBER,
        metavar="K",
        help="YaRN: the gain is g(K) / g(mscale-all-dim), where both are given and "
        "g(K) = 0.1 K ln F + 1.",
    ),
    click.option(
        "--mscale-all-dim", type=NUMBER, metavar="K", help="YaRN: see --mscale."
    ),
    click.option(
        "--low-freq-factor",
        type=NUMBER,
        metavar="R",
        help="Llama 3: interpolate under R turns [1].",
    ),
    click.option(
        "--high-freq-factor",
        type=NUMBER,
        metavar="R",
        help="Llama 3: keep pairs above R turns [4].",
    ),
)
fine = group(
    "Fine points of the scaling",
    click.option(
        "--encoding",
        type=click.Choice(["auto", "keys", "tensor", "folded", "runtime"]),
        default="auto",
        show_default=True,
        help="How it is written. keys: metadata. tensor: frequency factors. folded: with the "
        "attention factor in the query weights, which survives a rolled context. runtime: right "
        "in ggext alone, where nothing else is exact. auto: folded where that costs nothing, else "
        "the simplest exact one.",
    ),
    *PARAMETERS,
)
EXAMPLES = (
    (
        "ggext convert model.gguf --yarn 4",
        "model-yarn4.gguf reads 4 times the trained context",
    ),
    (
        "ggext convert Qwen/Qwen3-0.6B -c 64k --type q8_0",
        "a checkpoint from the hub as a GGUF file for 65,536 tokens, with weights of 8 bits",
    ),
)
