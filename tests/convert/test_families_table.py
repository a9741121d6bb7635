"""docs/families.md says what converters/ and the test rows say."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from families_table import architectures, table
from family_rows import ROWS, WITHOUT_A_ROW
from ggext.converters import known_families
from gguf import constants
from paths import ROOT

from ggext.llama_cpp_facts.names import NOT_WRITTEN, OTHERS


def test_the_page_is_what_the_tool_prints() -> None:
    assert (ROOT / "docs" / "families.md").read_text("utf-8") == table(), (
        "docs/families.md is stale: python tools/families_table.py > docs/families.md"
    )


def test_every_family_has_a_row() -> None:
    assert {row.family for row in ROWS.values()} == set(
        known_families()
    ) - WITHOUT_A_ROW


def test_every_text_architecture_has_a_state() -> None:
    """No name stands twice, and none that the installed library does not hold."""
    import llama_cpp

    states = architectures()
    assert not states.keys() & OTHERS.keys()
    assert not [arch for arch in NOT_WRITTEN if states[arch].startswith("exact")]
    listed = {*states, *OTHERS}
    assert {*constants.MODEL_ARCH_NAMES.values()} <= listed
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = next(
        path
        for path in folder.iterdir()
        if path.name.startswith(("libllama.", "llama."))
    )
    held = library.read_bytes()
    # the linker lets a name stand at the end of a longer one
    assert [name for name in sorted(listed) if f"{name}\0".encode() not in held] == []


def test_the_architectures_are_those_of_the_sources() -> None:
    """``GGEXT_LLAMA_CPP``: a checkout of llama.cpp."""
    source = (
        Path(os.environ.get("GGEXT_LLAMA_CPP") or "/nonexistent")
        / "src"
        / "llama-arch.cpp"
    )
    if not source.is_file():
        pytest.skip("GGEXT_LLAMA_CPP names no checkout of llama.cpp")
    named = re.findall(r'\{ LLM_ARCH_\w+, +"([^("]+)"', source.read_text())
    assert {*architectures(), *OTHERS} == {*named}


def test_the_page_on_adding_a_family_shows_the_file_as_it_is() -> None:
    page = (ROOT / "docs" / "adding-a-family.md").read_text("utf-8")
    assert (ROOT / "converters" / "arcee.py").read_text("utf-8") in page
    for line in (
        '    "arcee": RopeCapability("norm", loads_rope_freqs=True),',
        '    "arcee": Row("arcee", {"head_dim": 48}),',
    ):
        source = (
            "ggext/rope/capabilities.py"
            if "Capability" in line
            else "tests/support/family_rows.py"
        )
        assert line in page
        assert line in (ROOT / source).read_text("utf-8")
