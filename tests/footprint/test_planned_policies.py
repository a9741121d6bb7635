"""What a policy that moves cells takes: windows for two sequences, where they can be small."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_gguf
from planned import FREE
from sized_gguf import logged_sizes

from ggext.footprint.planner import Choices
from ggext.plan import PlanOptions, plan

WINDOWED = [
    *("afmoe", "cohere2", "gemma2", "gemma3", "gemma4", "gpt-oss", "laguna", "mimo2"),
    *("muse-glimmer", "olmo2", "step35"),
]


@pytest.mark.parametrize("arch", WINDOWED)
@pytest.mark.parametrize("n_ctx", [1024, 4000])
def test_the_plan_is_what_a_policy_that_moves_cells_allocates(
    arch: str, n_ctx: int, tmp_path: Path
) -> None:
    """Where all layers slide they stay whole."""
    pytest.importorskip("llama_cpp")
    from ggext.runtime import llama
    from ggext.runtime.cache import Cache
    from ggext.runtime.engine import MemoryOptions, Model, SessionOptions

    path = tiny_gguf.write_random(
        tmp_path / "tiny.gguf",
        arch,
        extra_keys={f"{arch}.attention.sliding_window": 256},
    )
    planned = plan(path, PlanOptions(n_ctx, 0, Choices(moves=True)), FREE)
    made = SessionOptions(n_ctx=n_ctx, memory=MemoryOptions("compress"))
    with (
        Model.open(path, gpu_layers=0) as model,
        llama.listening(llama.Log(None)),
        Cache(model, made),
    ):
        allocated = logged_sizes(model.size, llama.current_log())
    assert planned.context.whole_windows == (n_ctx == 1024 or arch == "olmo2")
    # Two caches, each logged to a hundredth of a MiB.
    assert abs(planned.ram.cache - allocated.cache) < 0.02 * 2**20
    assert abs(planned.ram.compute - allocated.compute) < 0.05 * allocated.compute
    total = planned.ram.total - planned.ram.checkpoints
    assert abs(total - allocated.total) < 0.05 * allocated.total
