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
from dataclasses import dataclass
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
    r".*\.attention\.sliding_window_pattern": (
        "written always: absent, llama.cpp takes the family's usual one"
    ),
    r".*\.attention\.temperature_(scale|length)": (
        "upstream leaves them out of a Hugging Face checkpoint, and queries do not grow"
    ),
    r".*\.(rope\.scaling\.finetuned|ssm\..*)": "read for layers that the model has not",
    r"granitehybrid\.expert_.*": "of a model without experts",
    r"nemotron_h_moe\.attention\.layer_norm_rms_epsilon": (
        "absent, llama.cpp takes the other epsilon"
    ),
    r".*\.rope\.ggext\..*": (
        "what ggext's own contexts are made with, where llama.cpp reads no key for it"
    ),
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

#: Runs upstream's converter; a tiny tokenizer's pre-tokenizer is given, which it knows of published
#: ones only.
_DRIVER = """
import runpy, sys
root, pre, *arguments = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
if pre:
    from conversion import base
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
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
    "gpt2": {"n_ctx": 64},
    "mistral4": {"architectures": ["Ministral3ForCausalLM"]},
    "mpt": {
        "architectures": ["MPTForCausalLM"],
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": None},
    },
}


#: Granite 4's layers as transformers 4 names them, which upstream's converter knows.
_LAYERS = {"full_attention": "attention", "linear_attention": "mamba"}
#: Layers that predict further tokens are asked for, and transformers' models have none.
_NO_FURTHER_LAYERS = ("qwen3_5", "qwen3_next")


def run_upstream(llama_cpp: Path, checkpoint: Path, out: Path, pre: str = "") -> None:
    """Raises ``RuntimeError`` with the last line that the converter printed. ``pre``: the
    pre-tokenizer's name, where the converter must not look for it."""
    command = [
        sys.executable,
        "-c",
        _DRIVER,
        str(llama_cpp),
        pre,
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
    return next(
        (why for pattern, why in REASONS.items() if re.fullmatch(pattern, what)), ""
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
    llama_cpp: Path, checkpoint: Path, pre: str = ""
) -> tuple[int, list[Difference]]:
    """Number of tensors that are the same bit for bit, and what is not the same."""
    with tempfile.TemporaryDirectory() as folder:
        ours, upstream = Path(folder, "ours.gguf"), Path(folder, "upstream.gguf")
        convert(ConvertOptions(checkpoint, ours, type="f32"))
        run_upstream(llama_cpp, checkpoint, upstream, pre)
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
        path.write_text(json.dumps(config))
        return compare(llama_cpp, checkpoint, "gpt-2")


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
