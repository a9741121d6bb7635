"""Files whose keys, tensors and vocabulary contradict what their architecture takes for granted."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import fuzz_models, mutations
from hostile.mutations import Draft, TensorDraft, draft_of
from tiny_gguf import WRITTEN, base_of

from ggext.errors import GgextError, GgufError
from ggext.footprint.architecture import architecture
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field
from ggext.llama_cpp_facts import check
from ggext.llama_cpp_facts.architectures import ARCHITECTURES
from ggext.llama_cpp_facts.sliding import SLIDING
from ggext.llama_cpp_facts.splitters import BY_HAND, BY_REGEX
from ggext.plan import MEASURED, PlanOptions, plan
from ggext.rope.capabilities import CAPABILITIES
from ggext.rope.decode import layer_kinds
from ggext.runtime.llama import check_gguf
from ggext.runtime.precheck import refuse_unknown_experts, refuse_what_aborts

Change = Callable[[Draft], None]


def keys(**values: Any) -> Change:
    """Sets keys of the architecture; two underscores stand for a dot."""

    def change(draft: Draft) -> None:
        for name, value in values.items():
            draft.fields[f"{draft.arch}.{name.replace('__', '.')}"] = Field.of(value)

    return change


def tensor(name: str, shape: tuple[int, ...], kind: int = 0) -> Change:
    def change(draft: Draft) -> None:
        draft.tensors[name] = TensorDraft(shape, kind, bytes(64))

    return change


def vocabulary(**values: Any) -> Change:
    def change(draft: Draft) -> None:
        for name, value in values.items():
            draft.fields[f"tokenizer.ggml.{name}"] = Field.of(value)

    return change


def tokens(change: Callable[[list[str]], list[str]]) -> Change:
    def apply(draft: Draft) -> None:
        key = "tokenizer.ggml.tokens"
        draft.fields[key] = Field.of(change(draft.fields[key].value))

    return apply


def without(*names: str) -> Change:
    def change(draft: Draft) -> None:
        for name in names:
            del draft.tensors[name]

    return change


def under_another_name(name: str, first: Change) -> Change:
    def change(draft: Draft) -> None:
        first(draft)
        mutations.rename(draft, name)

    return change


#: Architecture, what is changed, and the words of the refusal: each ended the process.
CONTRADICTIONS: dict[str, tuple[str, Change, str]] = {
    "further layers": ("llama", keys(nextn_predict_layers=2), "leave none of 2 layers"),
    "more further layers": (
        "llama",
        keys(nextn_predict_layers=3),
        "leave none of 2 layers",
    ),
    "more experts in a later layer": (
        "qwen3moe",
        keys(expert_used_count=[2, 3]),
        "more than the first layer's 2",
    ),
    "further layers in any architecture": (
        "llama",
        under_another_name("baichuan", keys(nextn_predict_layers=3)),
        "leave none of 2 layers",
    ),
    "rotates more": ("llama", keys(rope__dimension_count=18), "is 18, not 16"),
    "rotates less": ("qwen2", keys(rope__dimension_count=14), "is 14, not 16"),
    "odd": ("qwen3", keys(rope__dimension_count=15), "is 15, not 16"),
    "sliding rotation": (
        "llama",
        keys(rope__dimension_count_swa=8),
        "is not rope.dimension_count",
    ),
    "heads": ("llama", keys(attention__head_count=3), "3 heads cannot share 2"),
    "double heads": ("qwen2", keys(attention__head_count=8), "the keys want"),
    "heads a layer": (
        "llama",
        keys(attention__head_count=[4, 2]),
        "not one number for all",
    ),
    "no heads": ("llama", keys(attention__head_count=0), "not one number for all"),
    "shared heads": (
        "llama",
        keys(attention__head_count_kv=[2, 1]),
        "not one number for all",
    ),
    "key size": (
        "llama",
        keys(attention__key_length=32),
        "and attention.value_length 16",
    ),
    "both sizes": (
        "llama",
        keys(
            attention__key_length=32,
            attention__value_length=32,
            rope__dimension_count=32,
        ),
        "the keys want",
    ),
    "no experts": (
        "qwen2moe",
        keys(expert_count=0, expert_used_count=0),
        "expert_count is 0",
    ),
    "an idle layer": ("qwen3moe", keys(expert_used_count=[2, 0]), "not 1 to 4"),
    "groups of one": (
        "qwen3moe",
        keys(expert_group_count=4, expert_group_used_count=2),
        "experts are in 4 groups",
    ),
    "no chosen tokens": (
        "deepseek4",
        keys(attention__compress_ratios=[0, 0, 128]),
        "no layer has a ratio of 4 in attention.compress_ratios, and llama.cpp divides by",
    ),
    "no tokens that all attend to": (
        "deepseek4",
        keys(attention__compress_ratios=[0, 4, 4]),
        "no layer has a ratio of 128",
    ),
    "another ratio": (
        "deepseek4",
        keys(attention__compress_ratios=[8, 4, 128]),
        "each is 0, 4 or 128",
    ),
    "ratios of fewer layers": (
        "deepseek4",
        keys(attention__compress_ratios=[4, 128]),
        "not a number for each of 3 layers",
    ),
    "two streams": (
        "deepseek4",
        keys(hyper_connection__count=2),
        "2 residual streams, and not 1, whole groups and 4",
    ),
    "experts as floats": (
        "deepseek4",
        tensor("blk.0.ffn_gate_tid2eid.weight", (2, 320), 0),
        "is not of type I32",
    ),
    "not causal": ("llama", keys(attention__causal=False), "continues text"),
    "images": ("llama", keys(deepstack_mapping=[0, 1]), "that of a model of images"),
    "images in all layers": ("llama", keys(n_deepstack_layers=2), "is 2 of 2 layers"),
    "sections": (
        "llama",
        keys(rope__dimension_sections=[4, 2, 2, 0]),
        "no model of images",
    ),
    "temperature": (
        "mistral3",
        keys(attention__temperature_scale=float("nan")),
        "is nan",
    ),
    "integers": (
        "llama",
        tensor("blk.0.ffn_up.weight", (64, 96), 26),
        "is of type I32",
    ),
    "Q8_1": ("llama", tensor("blk.0.ffn_up.weight", (64, 96), 9), "is of type Q8_1"),
    "Q8_K": ("llama", tensor("blk.0.ffn_up.weight", (256, 96), 15), "is of type Q8_K"),
    "half a norm": (
        "llama",
        tensor("blk.0.attn_norm.weight", (64,), 1),
        "is not of type F32",
    ),
    "half biases": (
        "qwen2moe",
        tensor("blk.0.ffn_up_exps.bias", (96, 4), 1),
        "is not of type F32",
    ),
    "no queries": ("llama", without("blk.1.attn_q.weight"), "layer 1 has no attn_q"),
    "factors": ("llama", tensor("rope_freqs.weight", (7,)), "the keys want [8]"),
    "a NUL": ("llama", tokens(lambda ts: [*ts[:-1], f"{ts[0]}\0x"]), "occur twice"),
    "another tokenizer": (
        "llama",
        vocabulary(model="rwkv"),
        "which no model of llama has",
    ),
    "a splitter of words": (
        "llama",
        vocabulary(model="gpt2", pre="whitespace"),
        "pre-tokenizer is whitespace",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused(tmp_path: Path, name: str) -> None:
    arch, change, words = CONTRADICTIONS[name]
    draft = draft_of(arch, *base_of(arch))
    mutations.write(tmp_path / "whole.gguf", draft)
    refuse_what_aborts(read_gguf(tmp_path / "whole.gguf"))
    change(draft)
    mutations.write(tmp_path / "case.gguf", draft)
    with pytest.raises(GgufError) as caught:
        refuse_what_aborts(read_gguf(tmp_path / "case.gguf"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_expert_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """ggml asserts its number in the first evaluation."""
    draft = draft_of("deepseek4", *base_of("deepseek4"))
    mutations.write(tmp_path / "whole.gguf", draft)
    refuse_unknown_experts(read_gguf(tmp_path / "whole.gguf"), 4)
    name = "blk.0.ffn_gate_tid2eid.weight"
    data = np.frombuffer(draft.tensors[name].data, "<i4").copy()
    data[77] = 4
    draft.tensors[name] = TensorDraft((2, 320), 26, data.tobytes())
    mutations.write(tmp_path / "case.gguf", draft)
    with pytest.raises(GgufError, match="names the experts 0 to 4, and there are 4"):
        check_gguf(tmp_path / "case.gguf")


def test_every_architecture_that_is_written_or_planned_has_a_row() -> None:
    assert ARCHITECTURES.keys() >= {*CAPABILITIES, *MEASURED}


def test_every_row_is_fuzzed() -> None:
    assert set(fuzz_models.architectures()) == ARCHITECTURES.keys()


def test_an_architecture_outside_of_the_table_is_left_to_the_first_load() -> None:
    assert list(check.problems("rwkv6", {}, {}, 0, "rwkv")) == []


def test_the_pre_tokenizers_are_told_apart() -> None:
    assert not BY_HAND & BY_REGEX


@pytest.mark.parametrize("layers", [30, 48, 64])
@pytest.mark.parametrize("pattern", [{}, {"attention.sliding_window_pattern": 4}])
def test_memory_and_rope_agree_on_which_layers_slide(
    tmp_path: Path, layers: int, pattern: dict[str, int]
) -> None:
    """EXAONE 4: in files of 64 layers and no others, whatever the keys say."""
    fields, arrays = base_of("llama")
    fields = {
        key.replace("llama.", "exaone4."): value for key, value in fields.items()
    } | {"general.architecture": "exaone4"}
    fields |= {f"exaone4.{key}": value for key, value in pattern.items()}
    fields |= {"exaone4.block_count": layers, "exaone4.attention.sliding_window": 4096}
    mutations.write(tmp_path / "model.gguf", draft_of("exaone4", fields, arrays))
    header = read_gguf(tmp_path / "model.gguf")
    slides = [layer.slides for layer in architecture(header).layers]
    kinds = layer_kinds(header.arch_keys(), "exaone4")
    if layers == SLIDING["exaone4"].depth:
        assert slides == [kind == "scaled" for kind in kinds]
        assert sum(slides) == 48
    else:
        assert not any(slides)
        assert set(kinds) == {"scaled"}


def test_a_matrix_without_rows_is_planned_or_refused(tmp_path: Path) -> None:
    """The shape that the fuzzer found: the plan raised StopIteration."""
    draft = draft_of("llama", *base_of("llama"))
    tensor("blk.0.ffn_down.weight", (1,))(draft)
    mutations.write(tmp_path / "case.gguf", draft)
    with contextlib.suppress(GgextError):
        plan(tmp_path / "case.gguf", PlanOptions(64))


def test_no_damaged_model_ends_the_process(tmp_path: Path) -> None:
    """Some; ``make fuzz`` tries many, of all architectures."""
    pytest.importorskip("llama_cpp")
    bases = fuzz_models.bases_of(WRITTEN)
    cases = itertools.islice(fuzz_models.drawn(bases, seed=1), 36)
    outcome = fuzz_models.run(cases, bases, tmp_path, 120)
    assert not outcome.deaths
    assert not outcome.missed
    assert outcome.counts["refused"] > 5
    assert outcome.counts["used"] > 5


def test_a_death_is_kept_and_the_run_goes_on(tmp_path: Path) -> None:
    """The fuzzer itself: a child that dies names its file."""
    bases = {"llama": draft_of("llama", *base_of("llama"))}
    cases = itertools.islice(fuzz_models.drawn(["llama"], seed=5), 12)
    outcome = fuzz_models.run(cases, bases, tmp_path, 60, "dying:aborts_at_some_files")
    assert outcome.tried == 12
    assert outcome.counts["SIGABRT"] == len(outcome.deaths) > 0
    for death in outcome.deaths:
        assert (tmp_path / str(death["file"])).stat().st_size % 3 == 0


def test_a_seed_stands_for_a_file() -> None:
    base = draft_of("llama", *base_of("llama"))
    first, second = (mutations.mutated(base, random.Random("7"), 2) for _ in range(2))
    assert first[0] == second[0]
    assert np.array_equal(list(first[1].fields), list(second[1].fields))
