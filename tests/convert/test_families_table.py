"""docs/families.md says what converters/ and the test rows say."""

from __future__ import annotations

from families_table import table
from family_rows import ROWS, WITHOUT_A_ROW
from ggext.converters import known_families
from paths import ROOT


def test_the_page_is_what_the_tool_prints() -> None:
    assert (ROOT / "docs" / "families.md").read_text("utf-8") == table(), (
        "docs/families.md is stale: python tools/families_table.py > docs/families.md"
    )


def test_every_family_has_a_row() -> None:
    assert {row.family for row in ROWS.values()} == set(known_families()) - WITHOUT_A_ROW


def test_the_page_on_adding_a_family_shows_the_file_as_it_is() -> None:
    page = (ROOT / "docs" / "adding-a-family.md").read_text("utf-8")
    assert (ROOT / "converters" / "arcee.py").read_text("utf-8") in page
    for line in (
        '    "arcee": RopeCapability("norm", loads_rope_freqs=True),',
        '    "arcee": Row("arcee", {"head_dim": 48}),',
    ):
        source = (
            "ggext/rope/capabilities.py" if "Capability" in line else "tests/support/family_rows.py"
        )
        assert line in page
        assert line in (ROOT / source).read_text("utf-8")
