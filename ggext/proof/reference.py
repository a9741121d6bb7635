"""The judge: what transformers computes from the checkpoint, with the same scaling in its own
terms."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import CheckpointError, MissingExtraError, ModelError, first_line
from ggext.rope import methods
from ggext.rope.config_keys import PARAMETER_OF_KEY
from ggext.rope.families import FULL, KIND_NAMES, SLIDING
from ggext.rope.scaling import RopeGeometry, RopeScaling
from ggext.runtime.likelihood import diverge

if TYPE_CHECKING:
    import numpy as np

    from ggext.runtime.engine import Model

_KEYS = {parameter: key for key, parameter in PARAMETER_OF_KEY.items()}


def sample_tokens(model: Model, count: int) -> list[int]:
    """``count`` tokens of the embedded document, repeated as often as it takes. Raises ModelError
    for a vocabulary that makes none of it."""
    ids = model.tokenize((files("ggext") / "data" / "document.txt").read_text("utf-8"))
    if not ids:
        raise ModelError(
            f"{model.path}: its vocabulary makes no tokens of an English text, so that nothing can "
            "be evaluated; convert the model again"
        )
    return (ids * (count // len(ids) + 1))[:count]


def rope_parameters(
    scaling: RopeScaling, geometry: RopeGeometry, named: str = ""
) -> dict[str, Any]:
    """``rope_parameters`` as transformers spells the request, by layer kind where the sliding ones
    have their own. ``named``: the ``model_type`` or llama.cpp's architecture, by which the kinds
    have their names."""
    if geometry.sliding_base is None:
        return _of_one_kind(scaling, geometry)
    names = KIND_NAMES.get(named, {})
    sliding = {"rope_type": "default", "rope_theta": geometry.sliding_base}
    return {
        names.get(FULL, FULL): _of_one_kind(scaling, geometry),
        names.get(SLIDING, SLIDING): sliding,
    }


def _of_one_kind(scaling: RopeScaling, geometry: RopeGeometry) -> dict[str, Any]:
    """NTK-aware scaling is a larger ``rope_theta``."""
    if geometry.turning is not None and scaling.method in ("none", "linear"):
        return {
            "rope_type": "proportional",
            "rope_theta": geometry.base,
            "partial_rotary_factor": 2 * geometry.turning / geometry.head_dim,
            "factor": scaling.factor or 1.0,
        }
    if scaling.method in ("none", "ntk"):
        base = (
            geometry.base
            if scaling.method == "none"
            else methods.ntk_base(scaling.factor or 1.0, geometry)
        )
        return {"rope_type": "default", "rope_theta": base}
    parameters: dict[str, Any] = {
        "rope_type": scaling.method,
        "rope_theta": geometry.base,
    }
    parameters |= {_KEYS[k]: v for k, v in scaling.given().items() if k in _KEYS}
    if scaling.method == "llama3":
        parameters.setdefault("low_freq_factor", methods.LLAMA3_LOW_FREQ_FACTOR)
        parameters.setdefault("high_freq_factor", methods.LLAMA3_HIGH_FREQ_FACTOR)
    return parameters


def transformers_logits(
    folder: Path, scaling: RopeScaling, geometry: RopeGeometry, tokens: list[int]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits after each token, shape (n_tokens, n_vocab), in float32 on the CPU with plain
    attention.

    Quantized weights are taken as what they stand for, rounded to the configuration's ``dtype`` as
    in the file.
    """
    try:
        import torch
        from transformers import AutoConfig
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError(
            error.name or "transformers", "reference", "the reference of verify"
        ) from None
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        set_rope(config.get_text_config(), scaling, geometry)
        quantization = getattr(config, "quantization_config", None)
        if quantization is not None:
            config.quantization_config = {**quantization, "dequantize": True}
        dtype = "auto" if quantization else torch.float32
        model = loaded_model(folder, config, dtype, "eager")
        model = model.to("cpu", torch.float32).eval()
        if scaling.attention_factor is not None:  # only yarn has a parameter for it
            _set_gain(model, scaling.attention_factor)
        if geometry.turning is not None:
            _stop_pairs(model, geometry.turning)
        with torch.inference_mode():
            logits = model(torch.tensor([tokens]), use_cache=False).logits
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise CheckpointError(
            f"{folder}: transformers cannot run it: {first_line(error)}"
        ) from None
    result: np.ndarray[Any, np.dtype[np.float32]] = logits[0].numpy()
    return result


def judge_class(config: Any) -> Any:
    """transformers' class that loads a whole model: of one that sees too, the one for images and
    text."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM if known else AutoModelForImageTextToText


def loaded_model(folder: Path, config: Any, dtype: Any, attention: str) -> Any:
    """A checkpoint's model under a configuration. Raises ``CheckpointError`` where transformers
    made up tensors that it did not find."""
    model, loaded = judge_class(config).from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=attention,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = loaded["missing_keys"]
    if missing:
        raise CheckpointError(
            f"{folder}: transformers does not find {len(missing)} of the model's tensors there "
            f"(first {min(missing)}) and makes them up; save the model under its own names first"
        )
    return model


def set_rope(config: Any, scaling: RopeScaling, geometry: RopeGeometry) -> None:
    """The scaling in the part of a configuration that concerns text."""
    if not geometry.n_rot:
        return
    kept = _kept(config)
    given = rope_parameters(scaling, geometry, config.model_type)
    kinds = [kind for kind, values in kept.items() if isinstance(values, dict)]
    if kinds and geometry.sliding_base is None:
        given = dict.fromkeys(kinds, given)
    for kind in kinds:  # which share rotates is said for each kind of layer
        of_kind = kept.pop(kind)
        if geometry.turning is not None:  # where it is said in another way
            of_kind = {}
        given[kind] = of_kind | given.get(kind, {})
    config.rope_parameters = kept | given
    if (
        "llama_4_scaling_beta" in kept
    ):  # Ministral 3's queries grow by this context, whatever the method
        config.rope_parameters["original_max_position_embeddings"] = (
            methods.original_context(scaling, geometry)
        )
    if getattr(
        config, "original_max_position_embeddings", None
    ):  # Phi 3's, which goes before the inner one
        config.original_max_position_embeddings = methods.original_context(
            scaling, geometry
        )
    one_size = geometry.sliding_head_dim is None
    if one_size and getattr(config, "head_dim", geometry.head_dim) is None:
        config.head_dim = (
            geometry.head_dim
        )  # without which its YaRN cannot work (Mixtral)


def _set_gain(model: Any, gain: float) -> None:
    for module in model.modules():
        if hasattr(module, "attention_scaling"):
            module.attention_scaling = gain


def _stop_pairs(model: Any, turning: int) -> None:
    """Transformers' table of another method than proportional, over the pairs that turn alone; of
    the layers that attend to the whole text."""
    for name, frequencies in model.named_buffers():
        if name.endswith(
            ("full_attention_inv_freq", "full_attention_original_inv_freq")
        ):
            frequencies[turning:] = 0.0


_OF_THE_MODEL = (
    "partial_rotary_factor",
    "llama_4_scaling_beta",
    "mrope_section",
    "mrope_interleaved",
)


def _kept(config: Any) -> dict[str, Any]:
    """Which part of a head rotates, and how queries grow, is the model's, whatever the scaling."""

    def of(given: dict[str, Any]) -> dict[str, Any]:
        return {key: given[key] for key in _OF_THE_MODEL if key in given}

    given = config.rope_parameters or {}
    return of(given) | {
        kind: of(values) for kind, values in given.items() if isinstance(values, dict)
    }


def divergence(
    expected: np.ndarray[Any, np.dtype[np.float32]],
    actual: np.ndarray[Any, np.dtype[np.float32]],
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """KL(expected ‖ actual) of each row in nats, and the largest difference of a logit.

    Raises ModelError for a row whose largest logit is no finite number: no comparison says
    anything of it."""
    import numpy as np

    for logits in (expected, actual):
        if not np.isfinite(logits.max(axis=1)).all():
            raise ModelError(
                "the model's logits are no finite numbers: its weights are damaged, or they or a "
                "scale overflow"
            )
    with np.errstate(invalid="ignore"):  # both may be minus infinity, for a token
        difference = np.nan_to_num(np.abs(expected - actual), posinf=np.inf)
    return diverge(expected, actual).kl, float(difference.max())
