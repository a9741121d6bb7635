"""SmolLM 3: Llama's blocks, of which every fourth does not rotate.

llama.cpp turns the cached keys of those layers too when a context is shifted. No file can prevent
that: do not roll the context of these models.
"""

from __future__ import annotations

from ggext.converters.llama import QKV, Llama

_INTERVAL = 4


class SmolLM3(Llama):
    arch = "smollm3"
    defaults = {"tie_word_embeddings": True, "no_rope_layer_interval": _INTERVAL}
    biased = QKV

    def check(self) -> None:
        super().check()
        pattern = [int((i + 1) % _INTERVAL != 0) for i in range(self.n_layers)]
        rotating = self.config.values.get("no_rope_layers")
        interval = self.config.integer("no_rope_layer_interval")
        if rotating is None and interval == _INTERVAL:
            return
        if (
            not isinstance(rotating, list)
            or [int(bool(r)) for r in rotating[: self.n_layers]] != pattern
        ):
            problem = (
                f"no_rope_layer_interval is {interval}"
                if rotating is None
                else f"no_rope_layers is {rotating}"
            )
            raise self.refused(
                f"{problem}; llama.cpp's architecture {self.arch} rotates in "
                "all layers but every "
                f"{_INTERVAL}th"
            )


FAMILY = SmolLM3
