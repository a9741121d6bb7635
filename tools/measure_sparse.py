"""dots3.note and Hy4 in llama.cpp against transformers: a tiny random model of each, with
published keys, through llama.cpp's own converter.

    python tools/measure_sparse.py --llama-cpp PATH [FAMILY...]

PATH is a checkout of llama.cpp. Printed is the mean KL divergence in nats over the tokens, 64 by 64:
first where every token is chosen, then where 24 are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ggext.proof.reference import divergence, judge_class

_TOKENS = 256
_LATENT: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 48,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "index_n_heads": 16,
    "index_head_dim": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
_WINDOW: dict[str, Any] = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 48,
    "kv_lora_rank": 48,
    "head_dim": 40,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
}
_KINDS = ["indexed_attention", "indexed_attention", "sliding_attention"]
_KINDS.append("indexed_attention")
SIZES: dict[str, dict[str, Any]] = {
    "dots3_note_text": _LATENT
    | {
        "head_dim": 48,
        "shared_experts_intermediate_size": 48,
        "layer_types": _KINDS,
        "sliding_window": 40,
        "per_layer_config": {2: _WINDOW},
    },
    "hy_v4": _LATENT | {"indexer_types": ["full", "full", "shared", "full"]},
}
#: What upstream's converter asks for of dots3.note, in the published keys.
_PUBLISHED = {
    "architectures": ["Dots3NoteForCausalLM"],
    "layer_types": [kind.replace("indexed", "full") for kind in _KINDS],
    "first_k_dense_replace": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "apply_mla_qkv_lora_rescale": True,
    "sliding_window_size": 40,
    "rope_theta": 80_000_000.0,
    "swa_rope_theta": 50_000.0,
} | {f"swa_{key}": value for key, value in _WINDOW.items()}
_ELSEWHERE = ("per_layer_config", "rope_parameters", "sliding_window")


def measured(llama_cpp: Path, family: str, chosen: int) -> list[float]:
    import torch
    from compare_with_upstream import run_upstream
    from tiny import make_model
    from transformers import AutoConfig

    from ggext.runtime.engine import Model, Session, SessionOptions

    with tempfile.TemporaryDirectory() as folder:
        sizes = SIZES[family] | {"index_topk": chosen}
        checkpoint = make_model(Path(folder, "model"), family, **sizes)
        config = AutoConfig.from_pretrained(checkpoint)
        model = judge_class(config).from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        ids = [2 + (7919 * i + 13) % 300 for i in range(_TOKENS)]
        with torch.inference_mode():
            logits = model.eval()(torch.tensor([ids]), use_cache=False).logits
        path = checkpoint / "config.json"
        saved = json.loads(path.read_text())
        if family == "dots3_note_text":
            saved = {k: v for k, v in saved.items() if k not in _ELSEWHERE} | _PUBLISHED
            path.write_text(json.dumps(saved))
        out = Path(folder, "out.gguf")
        ways = "raw plain" if family == "dots3_note_text" else "plain"
        run_upstream(llama_cpp, checkpoint, out, "gpt-2", ways)
        options = SessionOptions(512, 1, kv_type="f32", flash_attention=False)
        with Model.open(out, 0) as opened, Session(opened, options) as session:
            kl, _ = divergence(logits[0].numpy(), session.logits(ids))
    return [float(kl[i : i + 64].mean()) for i in range(0, _TOKENS, 64)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("families", nargs="*", default=list(SIZES))
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    for family in options.families:
        for chosen in (512, 24):
            found = measured(options.llama_cpp, family, chosen)
            print(
                f"{family}, top {chosen}:", *(f"{kl:.1e}" for kl in found), flush=True
            )


if __name__ == "__main__":
    main()
