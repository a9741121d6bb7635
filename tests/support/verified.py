"""Files that are verified, and what is said of them."""

from __future__ import annotations

import math

from click.testing import CliRunner, Result

from ggext.cli import main
from ggext.rope.scaling import RopeScaling

GAIN = 1 + 0.1 * math.log(4)
OWN_YARN = RopeScaling(
    "yarn", factor=4, beta_fast=16, beta_slow=2, attention_factor=1.0
)
METHODS = {
    "none": RopeScaling("none"),
    "linear": RopeScaling("linear", factor=4),
    "linear-gain": RopeScaling("linear", factor=4, attention_factor=1.2),
    "ntk": RopeScaling("ntk", factor=4),
    "yarn": RopeScaling("yarn", factor=4),
    "yarn-7.5": RopeScaling("yarn", factor=7.5),
    "yarn-gain-1": RopeScaling("yarn", factor=4, attention_factor=1.0),
    "yarn-betas": OWN_YARN,
    "llama3": RopeScaling("llama3", factor=8),
}


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])
