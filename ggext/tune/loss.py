"""The loss of a batch in blocks of positions: logits of the whole batch are never in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ggext.tune.rows import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

#: Numbers of logits at once: 64 MB in float32, and as much again for their gradient.
_BLOCK_LOGITS = 1 << 24
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
        """``loss``: the sum of -log p over all tokens that are to be predicted, in float32."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": False,
        }
        if not self.in_blocks:
            return {"loss": summed(self._whole(**inputs).logits, shift_labels)}
        hidden = self.model.get_decoder()(**inputs).last_hidden_state
        return {"loss": self._of_hidden(hidden.flatten(0, 1), shift_labels.flatten())}

    def _of_hidden(self, hidden: Tensor, labels: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        head = self.model.get_output_embeddings()
        step = max(1, _BLOCK_LOGITS // head.weight.shape[0])
        total = hidden.new_zeros((), dtype=hidden.float().dtype)
        for start in range(0, len(hidden), step):
            block = hidden[start : start + step]
            targets = labels[start : start + step]
            total = total + checkpoint(
                self._of_block, head, block, targets, use_reentrant=False
            )
        return total

    def _of_block(self, head: Any, hidden: Tensor, labels: Tensor) -> Tensor:
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
        return summed(logits, labels)


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    """The summed -log p of labels, natural logarithm, in float32."""
    from torch.nn.functional import cross_entropy

    size = logits.shape[-1]
    return cross_entropy(
        logits.reshape(-1, size).float(),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="sum",
    )
