"""ERNIE 4.5 without experts: Llama's blocks, rotated in neighbouring pairs by the checkpoint
already."""

from __future__ import annotations

from ggext.converters.llama import QKV, Llama


class Ernie45(Llama):
    arch = "ernie4_5"
    defaults = {"rms_norm_eps": 1e-5, "head_dim": 128, "tie_word_embeddings": True}
    biased = (
        QKV  # the pinned llama.cpp loads a bias of attn_output too, and does not add it
    )
    bias_flags = dict.fromkeys(QKV, "use_bias")
    rotates_adjacent = True


FAMILY = Ernie45
