"""ggext's GGUF file compared with the one of llama.cpp's own converter, from the same checkpoint: every
difference, with why.

    python tools/compare_with_upstream.py --llama-cpp PATH CHECKPOINT...
    python tools/compare_with_upstream.py --llama-cpp PATH --families

PATH is a checkout of llama.cpp; its converter needs torch and transformers. ``--families`` compares
tiny random models of the families (tests/support/family_rows.py) and prints the tables of docs/upstream.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ggext.convert import ConvertOptions, convert
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile

#: Regular expression of a metadata key → why the two files may differ there.
REASONS = {
    r"ggext\.recipe": "what was asked for, so that verify can prove the file",
    r".*\.vocab_size": "some of llama.cpp's families leave it to be counted",
    r".*\.attention\.(key|value)_length(_mla)?": (
        "written always: absent, llama.cpp takes hidden_size / heads"
    ),
    r".*\.attention\.head_count_kv": "written always: absent, llama.cpp takes the number of heads",
    r".*\.rope\.dimension_count": "written always: absent, llama.cpp takes the size of a head",
    r".*\.rope\.freq_base(_swa)?": "written always: absent, llama.cpp takes 10000",
    r".*\.rope\.scaling\.type": "written as none where nothing is scaled: absent means linear",
    r".*\.rope\.scaling\.(factor|original_context_length|attn_factor|yarn_.*)": (
        "the keys that llama.cpp reads, and none that it does not"
    ),
    r"granitehybrid\.feed_forward_length": (
        "of the shared expert, which is all; upstream writes the absent experts' size"
    ),
    r".*\.feed_forward_length": "the configured size; upstream writes 4 × hidden_size",
    r"(granitehybrid|nemotron_h.*)\.context_length": (
        "the configured size; upstream writes 1048576"
    ),
    r".*\.context_length": "the configured size; upstream writes 2048",
    r".*\.tensor_data_layout": "a note for readers of files; llama.cpp does not read it",
    r".*\.use_parallel_residual": "llama.cpp goes by the tensors that are there",
    r".*\.(expert_gating_func|expert_weights_norm|attention\.q_lora_rank)": (
        "written always: what llama.cpp takes for an absent one goes by the model's size"
    ),
    r".*\.expert_group(_used)?_count": "one group is none",
    r"ernie4_5-moe\.expert_shared_count": "llama.cpp does not read it",
    r"ernie4_5-moe\.expert_shared_feed_forward_length": (
        "the shared experts' size; upstream writes intermediate_size / num_key_value_heads"
    ),
    r"gemma4\.final_logit_softcapping": "0 where there is none: absent, llama.cpp takes 30",
    r"tensor .*exp_probs_b\.bias": "a vector; upstream writes a matrix of one row",
    r".*\.attention\.sliding_window_pattern": (
        "written always: absent, llama.cpp takes the family's usual one"
    ),
    r".*\.attention\.temperature_(scale|length)": (
        "upstream leaves them out of a Hugging Face checkpoint, and queries do not grow"
    ),
    r".*\.(rope\.scaling\.finetuned|ssm\..*)": "read for layers that the model has not",
    r"granitehybrid\.expert_.*": "of a model without experts",
    r"nemotron\.attention\.layer_norm_rms_epsilon": (
        "llama.cpp does not read it: the norms are layer norms"
    ),
    r"nemotron_h_moe\.attention\.layer_norm_rms_epsilon": (
        "absent, llama.cpp takes the other epsilon"
    ),
    r".*\.rope\.ggext\..*": (
        "what ggext's own contexts are made with, where llama.cpp reads no key for it"
    ),
    r"exaone\.attention\.layer_norm_(rms_)?epsilon": (
        "the key that the loader asks for; upstream writes the one of layer norms"
    ),
    r"(laguna|phi3)\.(attention\.sliding_window|rope\.dimension_count_swa)": (
        "of a model without windows"
    ),
    r"qwen3vl(moe)?\.rope\.dimension_sections": (
        "those with which all pairs turn (`ggext.rope.sections`)"
    ),
    r"tensor .*ffn_(gate|up|gate_up)_exps\.weight": "upstream writes both in one tensor",
    r"general\.(file_type|quantization_version)": "ggext writes both for every type",
    r"general\.size_label": "an embedding that is written twice counts twice",
    r"tensor output\.weight": "tied, and the architecture needs it: the embedding once more",
    r"tensor .*ffn_gate_inp_shexp\.weight": (
        "a vector, as llama.cpp creates it; upstream writes a matrix of one row"
    ),
    r"deepseek4\.attention\.compress_ratios": (
        "of the layers that are there; upstream's list has those that predict further tokens too"
    ),
    r"deepseek4\.embedding_length_out": "the loader computes it",
    r"tokenizer\.chat_template": "upstream's own, where the checkpoint has none",
    r".*\.full_attention_interval": "attention.recurrent_layers says it layer by layer",
    r"tensor .*ssm_conv1d\.bias": (
        "zeros where the model has none, since llama.cpp adds it without asking for it"
    ),
    r"tensor .*ssm_a": "an exponential, rounded from float64; upstream's is off in the last bit",
    r"tokenizer\.ggml\.eos_token_id": "upstream takes Hunyuan's from eod_token_id",
    r"tokenizer\.ggml\.add_(bos|eos)_token": (
        "written always: absent, llama.cpp goes by the kind of tokenizer"
    ),
}

_FOLDED = "a gain folded into the queries (`rope.ggext.query_scale`)"
_UNROTATED_ORDER = (
    "the checkpoint's order; upstream reorders for a rotation that there is none of"
)
_MULTIPLIED = "the multipliers' product, rounded once; upstream rounds each factor's"
_UNDIVIDED = "divided by the root of hidden_size, by which llama.cpp multiplies and the model not"
#: Row of the tests → the same, for what is alone there.
REASONS_OF_ROWS: dict[str, dict[str, str]] = {
    "afmoe-tied": {r"tensor token_embd\.weight": _UNDIVIDED},
    "afmoe-without-mup": {r"tensor token_embd\.weight": _UNDIVIDED},
    "arcee-own": {r"tensor .*attn_q\.weight": _FOLDED},
    "falcon_h1": {r"tensor .*": _MULTIPLIED},
    "falcon_h1-norms": {r"tensor .*": _MULTIPLIED},
    "glm4v-whole": {
        r"tensor .*attn_[qk]\..*": (
            "all of a head rotates, as in transformers' class; upstream takes half where "
            "config.json says nothing"
        )
    },
    "gpt_bigcode-many": {
        r"tensor .*attn_qkv\..*": (
            "queries, keys and values in turn; upstream takes every model for one with a single "
            "key, and llama.cpp does not load the file"
        )
    },
    "gpt_oss-own": {r"tensor .*attn_q\..*": _FOLDED},
    "nemotron_h": {".*": "another model: upstream takes it for one with experts"},
    "nemotron_h-experts": {r"tensor .*attn_[qk]\.weight": _UNROTATED_ORDER},
    "nemotron_h-latent": {r"tensor .*attn_[qk]\.weight": _UNROTATED_ORDER},
    "phi3": {r"tensor .*attn_qkv\.weight": _FOLDED},
    "phi3-partial": {r"tensor .*attn_qkv\.weight": _FOLDED},
}

#: Runs upstream's converter; a tiny tokenizer's pre-tokenizer is given, which it knows of published
#: ones only. ``plain``: tokenizer.json is read as it stands and as GPT-2's kind, whatever the family
#: and its tokenizer's class add to the published one. ``raw``: config.json too is read as it
#: stands, whose published keys transformers' classes take in and do not show.
_DRIVER = """
import runpy, sys
root, pre, ways, *arguments = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
if pre:
    import conversion
    conversion.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    if "raw" in ways:
        from conversion import base
        base.AutoConfig = None
    if "plain" in ways:
        import transformers
        transformers.AutoTokenizer = transformers.PreTrainedTokenizerFast
        usual = conversion.get_model_class
        def with_plain_vocabulary(name, mmproj=False):
            found = usual(name, mmproj)
            found.set_vocab = conversion.TextModel._set_vocab_gpt2
            return found
        conversion.get_model_class = with_plain_vocabulary
sys.argv = ["convert_hf_to_gguf.py", *arguments]
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Difference:
    """``reason``: empty where there is none that is known."""

    what: str
    ours: str
    upstream: str
    reason: str


#: What upstream's converter needs in a config.json that transformers saves otherwise today.
LEGACY: dict[str, dict[str, Any]] = {
    "cohere2": {"rotary_pct": 1.0},
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt2": {"n_ctx": 64},
    "mistral4": {"architectures": ["Ministral3ForCausalLM"]},
    "mpt": {
        "architectures": ["MPTForCausalLM"],
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": None},
    },
}


#: Families whose published keys transformers' classes take in.
_RAW = ("gpt_neox", "minimax_m2", "minimax_m3_vl")
#: Granite 4's layers as transformers 4 names them, which upstream's converter knows.
_LAYERS = {"full_attention": "attention", "linear_attention": "mamba"}
#: Layers that predict further tokens are asked for, and transformers' models have none.
_NO_FURTHER_LAYERS = ("glm4_moe", "qwen3_5", "qwen3_next")


def run_upstream(
    llama_cpp: Path,
    checkpoint: Path,
    out: Path,
    pre: str = "",
    ways: str = "",
) -> None:
    """Raises ``RuntimeError`` with the last line that the converter printed. ``pre``: the
    pre-tokenizer's name, where the converter must not look for it; ``ways``: as in ``_DRIVER``."""
    command = [
        sys.executable,
        "-c",
        _DRIVER,
        str(llama_cpp),
        pre,
        ways,
        str(checkpoint),
        "--outfile",
        str(out),
    ]
    model_type = json.loads((checkpoint / "config.json").read_text())["model_type"]
    without = ["--no-mtp"] if model_type.startswith(_NO_FURTHER_LAYERS) else []
    done = subprocess.run(
        [*command, "--outtype", "f32", *without],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            re.sub(
                r"/\S*/", "", (done.stderr.strip().splitlines() or ["no message"])[-1]
            )
        )


def differences(ours: GgufFile, upstream: GgufFile) -> Iterator[Difference]:
    """Metadata key by key and tensors bit for bit."""
    for key in sorted(ours.fields.keys() | upstream.fields.keys()):
        pair = [
            _plain(file.fields[key].value) if key in file.fields else None
            for file in (ours, upstream)
        ]
        if not _same(*pair):
            yield Difference(key, _shown(pair[0]), _shown(pair[1]), _reason(key))
    for name in sorted(ours.tensors.keys() | upstream.tensors.keys()):
        kinds = [_kind(file, name) for file in (ours, upstream)]
        if kinds[0] != kinds[1]:
            yield Difference(f"tensor {name}", *kinds, _reason(f"tensor {name}"))
        elif bytes(ours.tensor_data(name)) != bytes(upstream.tensor_data(name)):
            values = [
                np.frombuffer(file.tensor_data(name), "<f4")
                for file in (ours, upstream)
            ]
            yield Difference(
                f"tensor {name}",
                "other bits",
                f"worst |Δ| {np.abs(values[0] - values[1]).max():.1e}",
                "",
            )


def _reason(what: str) -> str:
    return _first_match(REASONS, what)


def _first_match(reasons: dict[str, str], what: str) -> str:
    return next(
        (why for pattern, why in reasons.items() if re.fullmatch(pattern, what)), ""
    )


def _plain(value: Any) -> Any:
    return np.float32(value) if isinstance(value, float) else value


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _kind(file: GgufFile, name: str) -> str:
    info = file.tensors.get(name)
    return "absent" if info is None else f"type {info.type}, {list(info.shape)}"


def _shown(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def compare(
    llama_cpp: Path, checkpoint: Path, pre: str = "", ways: str = ""
) -> tuple[int, list[Difference]]:
    """Number of tensors that are the same bit for bit, and what is not the same."""
    with tempfile.TemporaryDirectory() as folder:
        ours, upstream = Path(folder, "ours.gguf"), Path(folder, "upstream.gguf")
        convert(ConvertOptions(checkpoint, ours, type="f32"))
        try:
            run_upstream(llama_cpp, checkpoint, upstream, pre, ways)
        except RuntimeError:
            if not pre:
                raise
            run_upstream(llama_cpp, checkpoint, upstream, pre, f"{ways} plain")
        first, second = read_gguf(ours), read_gguf(upstream)
        found = list(differences(first, second))
        return len(first.tensors) - sum(
            d.what.startswith("tensor ") for d in found
        ), found


def compare_family(llama_cpp: Path, name: str) -> tuple[int, list[Difference]]:
    """``name``: of a row in tests/support/family_rows.py. Raises ``RuntimeError`` where upstream does not
    convert it."""
    from family_rows import ROWS
    from published_deepseek4 import publish
    from renamed import rename
    from tiny import make_model

    row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_model(
            Path(folder, "Tiny-Model"), row.model_type, **row.config
        )
        if row.renamed:
            checkpoint = rename(
                checkpoint, Path(folder, "renamed", "Tiny-Model"), row.renamed
            )
        if row.model_type == "qwen3_vl_moe":
            _experts_as_published(checkpoint / "model.safetensors")
        if row.model_type == "deepseek_v4":  # by names of its own, experts in MXFP4
            published = Path(folder, "published", "Tiny-Model")
            checkpoint = publish(checkpoint, published, float8=False)
        path = checkpoint / "config.json"
        config = json.loads(path.read_text()) | LEGACY.get(row.model_type, {})
        if row.model_type == "falcon_h1":
            config.setdefault("head_dim", 32)
        if row.model_type == "granitemoehybrid":
            config["layer_types"] = [_LAYERS[kind] for kind in config["layer_types"]]
        if row.model_type == "minimax_m2":
            config.setdefault("rotary_dim", config["head_dim"])
        if row.model_type == "minimax_m3_vl":
            _blocks_as_published(config["text_config"])
        path.write_text(json.dumps(config))
        ways = "raw" if row.model_type in _RAW else ""
        same, found = compare(llama_cpp, checkpoint, "gpt-2", ways)
    own = REASONS_OF_ROWS.get(name, {})
    return same, [
        d if d.reason else replace(d, reason=_first_match(own, d.what)) for d in found
    ]


def _blocks_as_published(text: dict[str, Any]) -> None:
    """Keys of MiniMax M3 that upstream's converter asks for, and transformers does not save."""
    text["rotary_dim"] = int(
        text["head_dim"] * text["rope_parameters"]["partial_rotary_factor"]
    )
    text["n_shared_experts"] = (
        text["shared_intermediate_size"] // text["intermediate_size"]
    )
    text["moe_layer_freq"] = [int(k == "sparse") for k in text["mlp_layer_types"]]
    text["sparse_attention_config"] = {
        "sparse_num_index_heads": text["index_n_heads"],
        "sparse_index_dim": text["index_head_dim"],
        "sparse_topk_blocks": text["index_topk_blocks"],
        "sparse_block_size": text["index_block_size"],
        "sparse_local_block": text["index_local_blocks"],
    }


def _experts_as_published(path: Path) -> None:
    """Upstream takes them for columns whatever their shape; transformers 5 saves rows."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    for name, values in tensors.items():
        if ".mlp.experts." in name:
            tensors[name] = np.ascontiguousarray(values.swapaxes(1, 2))
    save_file(tensors, path)


def compare_families(llama_cpp: Path) -> None:
    from family_rows import ROWS

    reasons: dict[str, set[str]] = {}
    print(
        "| model of the tests | tensors | keys that are not the same |\n|---|---|---|"
    )
    for name in sorted(ROWS):
        try:
            same, found = compare_family(llama_cpp, name)
        except RuntimeError as error:
            print(f"| {name} | not converted by upstream: {error} | |", flush=True)
            continue
        keys = [
            re.sub(r"^(?!general|tokenizer|ggext|tensor )[^.]+\.", "", d.what)
            for d in found
        ]
        for key, difference in zip(keys, found, strict=True):
            reasons.setdefault(difference.reason or "**not explained**", set()).add(key)
        print(
            f"| {name} | {same} | {', '.join(f'`{key}`' for key in keys)} |", flush=True
        )
    print("\n| key | why |\n|---|---|")
    for reason, of in sorted(reasons.items(), key=lambda item: sorted(item[1])):
        print(f"| {', '.join(f'`{key}`' for key in sorted(of))} | {reason} |")


def report(name: str, same: int, found: list[Difference]) -> None:
    print(f"\n## {name}\n\n{same} tensors are the same bit for bit.\n")
    print("| | ggext | llama.cpp's converter | why |\n|---|---|---|---|")
    for d in found:
        print(
            f"| `{d.what}` | {d.ours} | {d.upstream} | {d.reason or '**not explained**'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--families", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    for checkpoint in options.checkpoints:
        report(checkpoint.name, *compare(options.llama_cpp, checkpoint))
    if options.families:
        compare_families(options.llama_cpp)


if __name__ == "__main__":
    main()
