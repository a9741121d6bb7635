"""A checkpoint in transformers under the wanted scaling, its adapter, and the two merged."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggext.errors import CheckpointError, first_line
from ggext.gguf.writer import check_room, output_errors
from ggext.tune.options import LORA_ALPHA
from ggext.tune.tables import TableProof, WantedRope, prove_model, set_context

#: What of a checkpoint is neither weights nor made again from the model.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
_MADE = ("config.json",)


def load(
    folder: Path,
    rope: WantedRope | None = None,
    *,
    bf16: bool = False,
    attention: str = "sdpa",
) -> Any:
    """The model, with its configuration set before it is made, or as it is (``None``). Raises
    ``CheckpointError``."""
    import torch
    from transformers import AutoConfig

    from ggext.proof.reference import loaded_model

    dtype = torch.bfloat16 if bf16 else torch.float32
    with quiet(), _of_transformers(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if rope is not None:
            set_context(config, rope)
        return loaded_model(folder, config, dtype, attention)


@contextmanager
def quiet() -> Iterator[None]:
    """Without bars and warnings of transformers, and of PEFT where it uses what that deprecates;
    they come back afterwards."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _of_transformers(folder: Path) -> Iterator[None]:
    """Its errors as ours."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise CheckpointError(
            f"{folder}: transformers cannot load it: {first_line(error)}"
        ) from None


def with_adapter(model: Any, rank: int, seed: int) -> Any:
    """Adapters on every linear layer but the output (PEFT), the only weights that are trained; the
    same for the same seed."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=LORA_ALPHA * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def from_adapter(model: Any, folder: Path, *, trainable: bool) -> Any:
    """With an adapter that was saved."""
    from peft import PeftModel

    with quiet(), _of_transformers(folder):
        return PeftModel.from_pretrained(model, folder, is_trainable=trainable)


def merged(
    folder: Path, rope: WantedRope, tuned: Path, *, adapter: bool
) -> tuple[Any, TableProof]:
    """The tuned model in float32, and the proof that its table is the wanted one still.

    ``tuned``: the adapter's folder, or that of all weights.
    """
    if not adapter:
        model = load(tuned, rope)
    else:
        with_both = from_adapter(load(folder, rope), tuned, trainable=False)
        with quiet():
            model = with_both.merge_and_unload()
    return model, prove_model("after the merge", model, rope)


def save(model: Any, original: Path, out: Path) -> None:
    """The model with the rest of the checkpoint that it was made from: tokenizer, template, card.

    Raises ``OutputError``; then there is no folder.
    """
    try:
        with output_errors(out), quiet():
            check_room(
                out, sum(p.numel() * p.element_size() for p in model.parameters())
            )
            model.save_pretrained(out)
            for file in original.iterdir():
                if (
                    file.is_file()
                    and not file.name.endswith(_WEIGHTS)
                    and file.name not in _MADE
                ):
                    shutil.copyfile(file, out / file.name)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
