"""What a context gets where nobody chose: the engine makes it so, and the plan counts it so."""

from __future__ import annotations

BATCH_CPU = 128
BATCH_GPU = 512
# Flash attention is slower on a CPU as long as the score matrix is small.
_MAX_SCORE_BYTES = 256 << 20


def batch(on_gpu: bool) -> int:
    """Tokens that are evaluated at a time."""
    return BATCH_GPU if on_gpu else BATCH_CPU


def flash_attention(heads: int, tokens: int, batch: int, *, on_gpu: bool, quantized: bool) -> bool:
    """Whether attention is computed in pieces: where quantized values need it, on a GPU, and where the whole score
    matrix (4 bytes for each head, token of the batch and token of the context) is large."""
    return quantized or on_gpu or 4 * heads * tokens * min(batch, tokens) > _MAX_SCORE_BYTES
