"""Mistral 7B and its successors of the same shape: Llama's blocks under other names in config.json."""

from __future__ import annotations

from ggext.converters.llama import Llama

from ggext.errors import CheckpointError


class Mistral(Llama):
    def check(self) -> None:
        super().check()
        window = self.config.values.get("sliding_window")
        if window is not None and window < self.config.integer("max_position_embeddings"):
            raise CheckpointError(
                f"{self.config.source}: sliding_window is {window}, and llama.cpp's architecture llama attends "
                f"to everything, which differs beyond {window} tokens; set sliding_window to null to accept that"
            )


FAMILY = Mistral
