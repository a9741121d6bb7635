"""What a folder is that is no checkpoint to convert: said, with what to do."""

from __future__ import annotations

import re
from pathlib import Path

from ggext.checkpoint.files import quote, read_json
from ggext.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
#: Files whose presence tells what a folder without a model's weights is: pattern → what is said.
_OTHER_FORMATS = {
    "model_index.json": "is a pipeline of diffusers, not a language model",
    "zero_to_fp32.py": (
        "holds DeepSpeed's parts of a training; run its zero_to_fp32.py and give what that writes"
    ),
    "*.distcp": (
        "holds a distributed checkpoint of PyTorch; merge it first (accelerate merge-weights)"
    ),
    "tf_model.h5": "holds TensorFlow's weights; download the safetensors",
    "flax_model*.msgpack": "holds Flax's weights; download the safetensors",
    "*.onnx": "holds an ONNX model; download the safetensors",
    "openvino_model.xml": "holds an OpenVINO model; download the safetensors",
    "weights.npz": "holds weights of an early MLX; download the original model's safetensors",
}
_TRAINING = re.compile(r"checkpoint-(\d+)")
_VARIANT = re.compile(
    r"(model|pytorch_model)\.([\w-]+)\.(safetensors|bin)(\.index\.json)?"
)


def refusal(folder: Path, lacking: str) -> CheckpointError:
    """Why ``folder`` is not converted. ``lacking``: what it does not have, where nothing tells
    more."""
    return CheckpointError(f"{folder} {what_it_is(folder) or lacking}")


def what_it_is(folder: Path) -> str:
    """What a folder without a model's config.json or weights is, and what to do; empty where
    nothing tells."""
    return (
        _adapter(folder)
        or _own_format(folder)
        or _other_format(folder)
        or _nearby(folder)
    )


def adapter_note(folder: Path) -> list[str]:
    """A line where an adapter lies next to the model's weights."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return []
    note = (
        f"{ADAPTER_CONFIG} lies next to the model: the adapter is not in the file; merge it first "
        "if it is meant (merge_and_unload of PEFT)"
    )
    return [note]


def _adapter(folder: Path) -> str:
    if not (folder / ADAPTER_CONFIG).is_file() and not any(
        (folder / name).is_file() for name in ADAPTER_WEIGHTS
    ):
        return ""
    try:
        values = read_json(folder / ADAPTER_CONFIG) or {}
    except CheckpointError:
        values = {}
    kind = values.get("peft_type")
    base = values.get("base_model_name_or_path")
    kind = "LoRA" if kind in (None, "LORA") else kind
    named = (
        f"{kind} adapter"
        if isinstance(kind, str) and kind.isalnum()
        else "PEFT adapter"
    )
    model = quote(base) if isinstance(base, str) and base else "another model"
    return (
        f"is a {named} of {model}, not a model: merge it first (PEFT: "
        "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(OUT), "
        "and the tokenizer's files), then convert OUT"
    )


def _own_format(folder: Path) -> str:
    if not (folder / "params.json").is_file():
        return ""
    what = "; download the same model's config.json, tokenizer files and model*.safetensors"
    if any(folder.glob("consolidated*.safetensors")):
        return (
            f"holds Mistral's own format (consolidated.safetensors, params.json){what}"
        )
    if any(folder.glob("consolidated*.pth")):
        return f"holds Meta's own format (consolidated.*.pth, params.json){what}"
    return ""


def _other_format(folder: Path) -> str:
    for pattern, description in _OTHER_FORMATS.items():
        if any(folder.glob(pattern)):
            return description
    return ""


def _nearby(folder: Path) -> str:
    """What is there under another name, or in a folder within."""
    names = sorted(path.name for path in folder.iterdir())
    variants = [match for name in names if (match := _VARIANT.fullmatch(name))]
    if variants:
        plain = f"{variants[0][1]}.{variants[0][3]}"
        return (
            f"has {variants[0][0]}, a variant that transformers takes only by its name; rename it "
            f"to {plain}{variants[0][4] or ''} if it is meant"
        )
    training = [
        (int(match[1]), path.name)
        for path in folder.iterdir()
        if (match := _TRAINING.fullmatch(path.name)) and path.is_dir()
    ]
    if training:
        return f"holds {len(training)} stages of a training; give one, such as {max(training)[1]}"
    files = [name for name in names if name.endswith(".gguf")]
    if files:
        more = " …" if len(files) > 3 else ""
        return f"has GGUF files and no checkpoint's weights; name one: {', '.join(files[:3])}{more}"
    within = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if within:
        return (
            f"is no model itself; its folder {within[0]} has a config.json: give that"
        )
    others = [
        name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth"))
    ]
    if others:
        return (
            f"has weights under the name {quote(others[0])}; rename what is meant to "
            "model.safetensors, or restore its index of shards"
        )
    return ""
