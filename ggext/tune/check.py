"""A checkpoint that another program tuned, held against the scaling that was meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.checkpoint.named import named_model
from ggext.convert.request import resolve_scaling
from ggext.convert.sources import open_source
from ggext.errors import RopeError, UsageError
from ggext.rope import methods
from ggext.tune.machine import check_packages
from ggext.tune.model import load
from ggext.tune.tables import WantedRope, prove, prove_model

if TYPE_CHECKING:
    from ggext.rope.scaling import RopeScaling


def check_checkpoint(
    path: Path, scaling: RopeScaling, target_context: int | None = None
) -> Iterator[str]:
    """A line for each thing that holds: what its config.json says, as ggext reads it, and what
    transformers computes with it.

    ``scaling``: from the length of the pretrained model, which a tuned checkpoint may not say any
    more; then the scaling must (``original_context``). Raises ``RopeError`` for the first that does
    not hold.
    """
    if scaling.method == "ntk":
        raise UsageError(
            "NTK-aware scaling is a larger rope_theta and nothing else: in a tuned checkpoint it "
            "cannot be told from one that the model was pretrained with"
        )
    check_packages()
    folder = named_model(path)
    source = open_source(folder)
    own = source.scaling
    assert own is not None  # a checkpoint always has one
    requested = resolve_scaling(
        scaling, target_context, source, keeps_own=False
    ).scaling
    assert requested is not None
    trained = methods.original_context(requested, source.geometry)
    rope = WantedRope(requested, replace(source.geometry, trained_context=trained))
    expected = methods.make_table(own, source.geometry)
    yield str(prove("in config.json", rope.table, expected))
    model = load(folder)
    yield str(prove_model("in transformers", model, rope))
    claimed = model.config.get_text_config().max_position_embeddings
    if claimed < rope.context:
        raise RopeError(
            f"{folder}: max_position_embeddings is {claimed:,}, and the scaling reaches "
            f"{rope.context:,} tokens: programs that go by it stop there; set it to that"
        )
    yield f"max_position_embeddings is {claimed:,}, at least the {rope.context:,} that are meant"
