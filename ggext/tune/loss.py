"""The loss of a batch in blocks of positions: logits of the whole batch are never in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ggext.tune.rows import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

#: Numbers of logits at once: 64 MB in float32, and as much again for their gradient.
BLOCK_LOGITS = 1 << 24
_AGREES = (
    1e-3  # relative difference of two losses that are computed alike, bfloat16 included
)


class BlockLoss:
    """Gives a model of transformers a ``forward`` that returns the summed loss of a batch alone.

    It takes the place of the instance's own, so that wrappers (PEFT, data parallel) go on working.
    ``in_blocks``: whether a family's logits are what its head makes of the hidden states, caps and
    factors of the configuration included; where that does not hold, all logits are made at once.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config.get_text_config()
        self.in_blocks = True
        self._whole: Callable[..., Any] = model.forward
        model.forward = self.forward

    def restore(self) -> None:
        """The model's own ``forward`` again."""
        del self.model.forward

    def check(self, batch: dict[str, Tensor]) -> None:
        """Compares both ways on a batch, and takes the slow one where they disagree."""
        import torch

        with torch.no_grad():
            fast = self.forward(**batch)["loss"]
            self.in_blocks = False
            slow = self.forward(**batch)["loss"]
        self.in_blocks = bool((fast - slow).abs() <= _AGREES * slow.abs())

    def forward(
        self,
        input_ids: Tensor,
        shift_labels: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_: object,
    ) -> dict[str, Tensor]:
        """``loss``: the sum of -log p over all tokens that are to be predicted, each with its
        weight (`token_weights`), in float32."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": False,
        }
        labels = shift_labels.flatten()
        weights = token_weights(shift_labels, attention_mask).flatten()
        if not self.in_blocks:
            logits = self._whole(**inputs).logits.flatten(0, 1)
            return {"loss": summed(logits, labels, weights)}
        hidden = self.model.get_decoder()(**inputs).last_hidden_state
        return {"loss": self._of_hidden(hidden.flatten(0, 1), labels, weights)}

    def _of_hidden(self, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        head = self.model.get_output_embeddings()
        step = max(1, BLOCK_LOGITS // head.weight.shape[0])
        total = hidden.new_zeros((), dtype=hidden.float().dtype)
        for start in range(0, len(hidden), step):
            block = slice(start, start + step)
            total = total + checkpoint(
                self._of_block,
                head,
                hidden[block],
                labels[block],
                weights[block],
                use_reentrant=False,
            )
        return total

    def _of_block(
        self, head: Any, hidden: Tensor, labels: Tensor, weights: Tensor
    ) -> Tensor:
        import torch

        logits = head(hidden).float()
        scale = getattr(self.config, "logit_scale", None)
        divisor = getattr(self.config, "logits_scaling", None)
        cap = getattr(self.config, "final_logit_softcapping", None)
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return summed(logits, labels, weights)


def summed(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The sum of weight · -log p of labels, natural logarithm, in float32.

    Logits (n_tokens, n_vocab); labels and weights (n_tokens,).
    """
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction="none"
    )
    return (losses * weights).sum()


def token_weights(labels: Tensor, mask: Tensor | None) -> Tensor:
    """The weight of each token's loss, (rows, tokens): a row's tokens / those that are learned.

    So a row counts by its length, whichever part of it is learned. In a mixture of chats and plain
    text the few tokens of the answers would be outweighed otherwise.
    """
    import torch

    tokens = torch.ones_like(labels) if mask is None else mask
    learned = (labels != IGNORED).sum(1, keepdim=True).clamp(min=1)
    return (tokens.sum(1, keepdim=True) / learned).expand(labels.shape)


def weight_of(labels: Tensor, mask: Tensor) -> Tensor:
    """The sum of the weights of all tokens that are learned, by which a loss is divided."""
    return mask[(labels != IGNORED).any(1)].sum()
