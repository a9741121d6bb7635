"""Tiny random Llamas as Hugging Face checkpoints, made by transformers itself."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

VOCABULARY = 320
DOCUMENT = files("ggext") / "data" / "document.txt"


@cache
def _tokenizer_json() -> str:
    """A byte-level BPE with GPT-2's pre-tokenizer, trained on the embedded document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([DOCUMENT.read_text("utf-8")], trainer)
    return str(tokenizer.to_str())


def write_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(_tokenizer_json())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}


#: What a model that sees says outside of its parts.
NARROW = {
    "kimi_k25": {"projection_hidden_size": 32},
    "minimax_m3_vl": {"projector_hidden_size": 32},
}
_OTHER_NAMES = (
    "num_hidden_layers num_attention_heads num_key_value_heads intermediate_size "
    "max_position_embeddings"
).split()


def small_config(model_type: str, **config: Any) -> Any:
    """transformers' configuration of what ``make_model`` makes."""
    from transformers import AutoConfig

    values = {
        key: value
        for key, value in (SIZES | config).items()
        if value is not None or key not in SIZES
    }
    if model_type in (
        "mpt",
        "bloom",
    ):  # whose classes take no other names next to their own
        values = {k: v for k, v in values.items() if k not in _OTHER_NAMES}
    vision = values.pop("vision_config", None)
    if vision is None:
        return AutoConfig.for_model(model_type, **values)
    tied = values["tie_word_embeddings"]
    more = NARROW.get(model_type, {})
    return AutoConfig.for_model(
        model_type,
        text_config=values,
        vision_config=vision,
        tie_word_embeddings=tied,
        **more,
    )


def make_model(
    folder: Path,
    model_type: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    shard: str = "1GB",
    **config: Any,
) -> Path:
    """A random model: 2 layers, 4 heads of 32 over 2 KV heads, context 64 unless ``config`` says
    otherwise.

    The weights are large enough for attention to be far from uniform, so a wrong RoPE table shows.
    A value of ``None`` in ``config`` leaves the family's own default.
    """
    import torch

    from ggext.proof.reference import judge_class

    torch.manual_seed(seed)
    values = small_config(model_type, **config)
    model = judge_class(values).from_config(values).to(getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", ".D")) or "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
    fill_what_is_zero(model)
    model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    return folder


def fill_what_is_zero(model: Any) -> None:
    """Random values for what DeepSeek 4's class makes 0 or 1: the mixture of residual streams,
    sinks, and the experts of each token."""
    import torch

    if model.config.model_type != "deepseek_v4":
        return
    for name, parameter in model.named_parameters():
        if "hc." in name or "hc_head." in name or name.endswith("sinks"):
            torch.nn.init.normal_(parameter, float(name.endswith("scale")), 0.3)
    for name, chosen in model.named_buffers():
        if name.endswith("tid2eid"):
            scores = torch.rand(len(chosen), model.config.n_routed_experts)
            chosen.copy_(scores.argsort(dim=1)[:, : chosen.shape[1]])


def make_llama(folder: Path, **options: Any) -> Path:
    return make_model(folder, options.pop("model_type", "llama"), **options)
