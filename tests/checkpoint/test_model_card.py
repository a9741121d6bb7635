"""The metadata that programs show: of the card, the name, the parameters, the generation config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ggext.checkpoint.model_card import general_metadata

TENSORS = [
    ("token_embd.weight", (32000, 4096)),
    ("blk.0.ffn_up_exps.weight", (8, 4096, 14336)),
]


def described(
    folder: Path, name: str = "Mistral-0.6B-Instruct-v0.2", **files: Any
) -> tuple[dict[str, Any], list[str]]:
    for file, text in files.items():
        (folder / file.replace("_md", ".md").replace("_json", ".json")).write_text(text)
    return general_metadata(folder, name, "llama", TENSORS)


def test_name_and_parameters_tell_something(tmp_path: Path) -> None:
    values, notes = described(tmp_path)
    assert notes == []
    assert values == {
        "general.name": "Mistral 0.6B Instruct v0.2",
        "general.version": "v0.2",
        "general.finetune": "Instruct",
        "general.basename": "Mistral",
        "general.size_label": "0.6B",
    }
    assert described(tmp_path, "x")[0] == {
        "general.name": "X",
        "general.size_label": "8x190M",
    }


def test_a_card_and_a_generation_config(tmp_path: Path) -> None:
    card = (
        "---\nlicense: apache-2.0\ntags: [chat]\nlanguage:\n- en\n- no\nbase_model: "
        "org/Base-7B\n---\n# Words\n"
    )
    sampling = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "eos_token_id": 2,
        "min_p": True,
    }
    values, notes = described(
        tmp_path, README_md=card, generation_config_json=json.dumps(sampling)
    )
    assert notes == []
    assert values["general.license"] == "apache-2.0"
    assert values["general.tags"] == ["chat"]
    assert values["general.languages"] == ["en", "no"]
    assert (
        values["general.base_model.0.repo_url"] == "https://huggingface.co/org/Base-7B"
    )
    found = {
        k.removeprefix("general.sampling."): v
        for k, v in values.items()
        if "sampling" in k
    }
    assert found == {"temp": 0.6, "top_k": 20, "top_p": 0.95}


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: [unclosed\n---\n",
        "---\nlicense:\n  a: b\n---\n",
        "---\nbase_model: 7\ntags: {a: 1}\nlicense: [1, 2]\n---\n",
        "---\nlicense: \x00\n---\n",
        "---\n" + "x" * (2 << 20),
        "---\n- a list\n---\n",
    ],
)
def test_a_card_that_is_no_card_is_left_out(tmp_path: Path, card: str) -> None:
    values, _ = described(tmp_path, README_md=card)
    assert values["general.name"] == "Mistral 0.6B Instruct v0.2"
    assert all(isinstance(value, str) for value in values.values())


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    values, notes = described(
        tmp_path,
        README_md="---\nlicense: [unclosed\n---\n",
        generation_config_json="[1]",
    )
    assert "general.license" not in values
    assert notes[0].startswith("README.md: its front matter cannot be used")
