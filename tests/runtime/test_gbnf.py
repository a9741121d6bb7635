"""GBNF grammars: read as llama.cpp reads them, or refused in one line."""

from __future__ import annotations

import pytest
from schema_walks import follows

from ggext.errors import UsageError
from ggext.runtime.sampling import Sampling

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")


# GBNF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grammar", "texts", "others"),
    [
        ('root ::= ("yes" | "no") "."', ["yes.", "no."], ["yes", "y.", ""]),
        ("root ::= [a-c]+ # comment\n", ["abc"], ["", "d"]),
        (
            'root ::= "a"{2,3} b?\nb ::= [^x-z\\n]',
            ["aa", "aaa", "aaab"],
            ["a", "aax", "aa\n"],
        ),
        ('root ::= (\n "a" |\n "b" )* "\\x41\\u00e4\\U0001F600"', ["abAä😀"], ["ab"]),
        ("root ::= .{2}", ["\nä"], ["a"]),
        (
            'root ::= root "a" | "a"',
            ["aaa"],
            ["", "ab"],
        ),  # left recursion, which llama.cpp refuses
        ('root ::= (("a"*)*)* "b"', ["b", "aab"], ["a"]),
        ('root ::= "a"{0} "b"{0,0} "" "c"', ["c"], ["ac", ""]),
        ('root ::= a-B\na-B ::= "x" | | "y"', ["x", "", "y"], ["z"]),
        ("root ::= [a\\]\\-]+", ["a]-"], ["\\"]),
        ('root ::= ("a" | "ab" | "abc")* "d"', ["aabcabd"], ["ac"]),
        ("root ::= [^]", ["x"], [""]),
    ],
)
def test_gbnf_is_read_as_llama_cpp_reads_it(
    grammar: str, texts: list[str], others: list[str]
) -> None:
    assert [text for text in texts if not follows(grammar, text)] == []
    assert [text for text in others if follows(grammar, text)] == []


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("", "it has no such rule"),
        ('x ::= "a"', "it has no such rule"),
        ("root ::= nothing", "line 1: the rule nothing is not defined"),
        ('root ::= "a"\n\nroot ::= "b"', "line 3: the rule root is defined twice"),
        ('root ::= "abc', "does not end"),
        ("root ::= [abc", "does not end"),
        ("root ::= []", "is empty"),
        ("root ::= [z-a]", "ends below"),
        ('root ::= "\\q"', "no such escape"),
        ('root ::= "\\uD800"', "U+D800 is not a character"),
        ('root ::= "\ud800"', "U+D800 is not a character"),
        ('root ::= "\\UFFFFFFFF"', "is not a character"),
        ('root ::= ("a"', "not closed"),
        ('root ::= "a" )', "a part of a rule is expected"),
        ("root ::= *", "nothing that could be repeated"),
        ('root ::= "a"{5,2}', "ends below its beginning"),
        ('root ::= "a"{1000000000}', "small numbers"),
        ('root ::= "a"{3000}', "more than 2,000"),
        ('root ::= (("a"{2000}){2000}', "more than 60,000 symbols"),
        ("root ::= " + "(" * 20_000, "nested more than 100 deep"),
        ("root ::= " + '"a"|' * 200_000, "symbols"),
        ("root ::= <5", "a token is not"),
        (
            "root ::= r0\n"
            + "".join(f"r{i} ::= r{i + 1}\n" for i in range(3000))
            + 'r3000 ::= "a"',
            "lead",
        ),
        ("root ::= x\nx ::= x", "cannot be followed"),
        ("root " * 400_000, "more than"),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_line(grammar: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        Sampling(grammar=grammar)
    assert why in str(refused.value)
    assert str(refused.value).isprintable()
