"""What a GGUF file says of its vocabulary: the pre-tokenizer, the stops, the template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import ROOT
from tiny_tokenizer import DIGITS, tiny
from vocabulary import (
    BYTE_LEVEL,
    EOS,
    Load,
    added,
    differences,
    save,
    split_steps,
    strings,
)

from ggext.checkpoint.files import CONTROL, NORMAL, UNUSED, USER_DEFINED
from ggext.checkpoint.vocabulary import pretokenizers
from ggext.checkpoint.vocabulary.read import read_vocabulary

DEMO_MODEL = ROOT / "ggext/data/demo-model"


def test_demo_model(load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    if not (DEMO_MODEL / "tokenizer.json").exists():
        pytest.skip("ggext/data/demo-model has no tokenizer.json yet")
    size = json.loads((DEMO_MODEL / "config.json").read_text())["vocab_size"]
    vocabulary = read_vocabulary(DEMO_MODEL, size)
    original = tokenizers.Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    specials = [
        t
        for t, k in zip(vocabulary.tokens, vocabulary.token_types, strict=True)
        if k == 3
    ]
    assert vocabulary.pre == "gpt-2"
    assert differences(original, load(vocabulary), strings(2500, specials)) == []


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (BYTE_LEVEL, False, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}, False, "smollm"),
        (split_steps(pretokenizers.GPT2), False, "gpt-2"),
        (split_steps(pretokenizers.LLAMA3), False, "dbrx"),
        # every token can be merged, so that ignore_merges makes no difference
        (split_steps(pretokenizers.QWEN2), True, "qwen2"),
        (split_steps(pretokenizers.TEKKEN), False, "tekken"),
        # the name that leaves combining marks with their letters goes before the other one
        (split_steps(pretokenizers.GPT4O), False, "granite-embed-multi-97m"),
    ],
    ids=[
        "gpt2",
        "digits",
        "gpt2-split",
        "llama3-merging",
        "qwen2-ignoring",
        "tekken-merging",
        "gpt4o-merging",
    ],
)
def test_pre_tokenizer_name(
    tmp_path: Path, pre_tokenizer: object, ignore_merges: bool, name: str
) -> None:
    root = tiny(model={"ignore_merges": ignore_merges}) | {
        "pre_tokenizer": pre_tokenizer
    }
    assert read_vocabulary(save(tmp_path, root), 258).pre == name


# special tokens, flags, templates ---------------------------------------------------------------


def test_metadata(tmp_path: Path) -> None:
    config = {
        "eos_token": EOS,
        "bos_token": EOS,
        "sep_token": EOS,
        "pad_token": "[none]",
    }
    templates = [
        {"name": "default", "template": "D"},
        {"name": "tool use", "template": "T"},
    ]
    root = tiny() | {
        "added_tokens": [*added(257, EOS), *added(258, "\u2581x", special=False)]
    }
    save(tmp_path, root, tokenizer_config=config | {"chat_template": templates})
    metadata = read_vocabulary(tmp_path, 260).metadata()
    tokens = metadata.pop("tokenizer.ggml.tokens")
    types = metadata.pop("tokenizer.ggml.token_type")
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert tokens[255:] == ["\u00ff", "ab", EOS, "\u2581x", "[PAD259]"]
    assert types[255:] == [NORMAL, NORMAL, CONTROL, USER_DEFINED, UNUSED]
    assert metadata == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.eot_token_id": 257,
        "tokenizer.ggml.seperator_token_id": 257,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "D",
        "tokenizer.chat_template.tool_use": "T",
        "tokenizer.chat_templates": ["tool_use"],
    }


def test_a_chat_template_file_goes_first(tmp_path: Path) -> None:
    """chat_template.json is a processor's: transformers' tokenizers do not read it."""
    save(
        tmp_path, tiny(), tokenizer_config={"eos_token": EOS, "chat_template": "config"}
    )
    assert read_vocabulary(tmp_path, 258).chat_template == "config"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert read_vocabulary(tmp_path, 258).chat_template == "config"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert read_vocabulary(tmp_path, 258).chat_template == "jinja"


def test_stops_beside_eos(tmp_path: Path) -> None:
    root = tiny() | {"added_tokens": added(257, EOS, "<stop>", "<halt>", "<quit>")}
    config = {"eos_token_id": [257, 258, 259, 260]}
    save(tmp_path, root, tokenizer_config={}, config=config)
    vocabulary = read_vocabulary(tmp_path, 261)
    assert vocabulary.special_ids == {"eos": 257, "eot": 257, "eom": 258}
    assert ["'<halt>'" in note or "'<quit>'" in note for note in vocabulary.notes] == [
        True,
        True,
    ]


@pytest.mark.parametrize(("end", "eom"), [(258, {"eom": 258}), (3, {})])
def test_an_end_of_the_document_is_a_stop(
    tmp_path: Path, end: int, eom: dict[str, int]
) -> None:
    """Hunyuan's; not the 3 that its class has by default, where that is an ordinary token."""
    root = tiny() | {"added_tokens": added(257, EOS, "<eod>")}
    save(
        tmp_path,
        root,
        tokenizer_config={"eos_token": EOS},
        config={"eod_token_id": end},
    )
    assert read_vocabulary(tmp_path, 259).special_ids == {"eos": 257, "eot": 257, **eom}
