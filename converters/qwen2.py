"""Qwen 2 and 2.5: Llama's blocks with biases on Q, K and V, rotated in halves as transformers does."""

from __future__ import annotations

from ggext.converters.llama import Llama

from ggext.errors import CheckpointError


class Qwen2(Llama):
    arch = "qwen2"

    def check(self) -> None:
        super().check()
        if self.config.flag("use_sliding_window"):
            raise CheckpointError(
                f"{self.config.source}: use_sliding_window is true, and llama.cpp's architecture {self.arch} attends "
                "to everything; set it to false to accept that"
            )


FAMILY = Qwen2
