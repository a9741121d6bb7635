"""A checkpoint's tensors under the names that the family's rules have.

What wraps a model in training stays in its names (``_orig_mod.``, ``module.``); a base model's lack
its prefix; transformers loads the same model under several names. Each is taken off, or put on, and
reported.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ggext.checkpoint.safetensors import CheckpointTensor, same_values
from ggext.errors import CheckpointError

if TYPE_CHECKING:
    from ggext.converters.base import Family

Tensors = dict[str, CheckpointTensor]
#: Tensors under other names, and a note on what was done to the names.
Renamed = tuple[Tensors, list[str]]
#: What PyTorch puts around a module: compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_ADAPTER = re.compile(
    r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|vera_lambda_[bd]|ia3_l|"
    r"(hada|lokr|oft)_\w+)(\.|$)"
)
#: What an adapter makes of a module that it changes, in a model that is not merged.
_UNMERGED = re.compile(r"\.(base_layer|original_module|modules_to_save)\.")


def named_tensors(tensors: Tensors, family: Family) -> Renamed:
    """Raises ``CheckpointError`` for weights that an adapter was not merged into, and for an output
    matrix that the architecture cannot have."""
    source = family.config.source
    tensors, of_adapter = _without_adapter(tensors, source)
    tensors, of_wrappers = _without_wrappers(tensors, source)
    named = {family.stored_name(name): tensor for name, tensor in tensors.items()}
    named, of_prefix = _with_prefix(named, family)
    named, of_output = _with_settled_output(named, family)
    return named, [*of_adapter, *of_wrappers, *of_prefix, *of_output]


def _without_adapter(tensors: Tensors, source: str) -> Renamed:
    unmerged = next((name for name in tensors if _UNMERGED.search(name)), None)
    parts = [name for name in tensors if _ADAPTER.search(name)]
    if unmerged is not None or len(parts) == len(tensors) > 0:
        raise CheckpointError(
            f"{source}: the weights hold an adapter that is not merged ({unmerged or parts[0]}); "
            "load the model with PEFT, merge_and_unload() and save_pretrained(), then convert that"
        )
    if not parts:
        return tensors, []
    note = (
        f"{len(parts)} tensors are of an adapter and not in the file, first {parts[0]}; merge "
        "it first if it is meant"
    )
    rest = {name: tensor for name, tensor in tensors.items() if name not in parts}
    return rest, [note]


def _without_wrappers(tensors: Tensors, source: str) -> Renamed:
    """Without the names of wrappers, wherever they stand, and without those that all names begin
    with."""
    names = {name: _WRAPPERS.sub("", name) for name in tensors}
    taken = {f"{match[1]}." for name in tensors for match in _WRAPPERS.finditer(name)}
    for prefix in ("module.", "_forward_module.", "base_model.model.", "module."):
        if names and all(plain.startswith(prefix) for plain in names.values()):
            names = {name: plain.removeprefix(prefix) for name, plain in names.items()}
            taken.add(prefix)
    if len(set(names.values())) < len(names):
        raise CheckpointError(
            f"{source}: without {', '.join(sorted(taken))} two tensors have the same name; save "
            "the model itself, not what wraps it"
        )
    if not taken:
        return tensors, []
    note = (
        f"the tensors' names have {', '.join(sorted(taken))}, of what wrapped the model in "
        "training: taken off"
    )
    return {names[name]: tensor for name, tensor in tensors.items()}, [note]


def _with_prefix(named: Tensors, family: Family) -> Renamed:
    """A base model's tensors under the names that they have in the whole one, as transformers loads
    them."""
    embedding = f"{family.embedding}.weight"
    named, notes = _without_common_prefix(named, embedding)
    prefix, _, inner = embedding.partition(".")
    if embedding in named or inner not in named:
        return named, notes
    note = (
        f"the weights are a base model's, whose names lack {prefix}.: put before them"
    )
    outside = (f"{family.head}.", f"{prefix}.")
    whole = {
        name if name.startswith(outside) else f"{prefix}.{name}": tensor
        for name, tensor in named.items()
    }
    return whole, [*notes, note]


def _without_common_prefix(named: Tensors, embedding: str) -> Renamed:
    """Without what all names begin with before the embedding's, as a trainer's own module has it
    (``model.model.layers``, ``policy.model.layers``)."""
    ends = [name for name in named if name.endswith(f".{embedding}")]
    prefix = ends[0].removesuffix(embedding) if len(ends) == 1 else ""
    if not prefix or not all(name.startswith(prefix) for name in named):
        return named, []
    note = f"all tensors' names begin with {prefix}: taken off"
    return {name.removeprefix(prefix): tensor for name, tensor in named.items()}, [note]


def _with_settled_output(named: Tensors, family: Family) -> Renamed:
    """Of a tied output matrix what transformers makes of it: where the checkpoint has another one
    than the embedding, that; where it has no embedding, both are it."""
    head = f"{family.head}.weight"
    embedding = f"{family.embedding}.weight"
    if not family.is_tied or head not in named:
        return named, []
    others = {name: tensor for name, tensor in named.items() if name != head}
    if embedding not in named:
        note = f"{embedding} is not there: tied to {head}, which is taken for both"
        return others | {embedding: named[head]}, [note]
    if same_values(named[head], named[embedding]):
        return others, []
    if not family.has_output:
        raise CheckpointError(
            f"{family.config.source}: the model has {head}, other than {embedding}, and "
            f"llama.cpp's architecture {family.arch} has no output matrix but the embedding"
        )
    family.untie()
    note = (
        f"tie_word_embeddings is true, and {head} is another matrix than {embedding}: both are "
        "written, as transformers reads them"
    )
    return named, [note]
