"""GBNF grammars and JSON schemas that try to end the process, to outlast it or to fill its memory."""

from __future__ import annotations

GRAMMARS = {
    "nest paren 100k": "root ::= " + "(" * 100000 + '"a"' + ")" * 100000,
    "nest paren 20k": "root ::= " + "(" * 20000 + '"a"' + ")" * 20000,
    "nest paren 5k": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
    "rep huge": 'root ::= "a"{1000000000}',
    "rep nested": 'root ::= ((((("a"{1000}){1000}){1000}){1000}){1000})',
    "rep range": 'root ::= "a"{0,100000}',
    "rep 2000 nested": 'root ::= (("a"{0,2000}){0,2000})',
    "star star": 'root ::= ((("a"?)*)*)*',
    "empty loop": 'root ::= (""*)*',
    "opt nest": "root ::= " + "(" * 20 + '"a"?' + ")?" * 20,
    "opt seq": "root ::= " + '"a"? ' * 60,
    "opt alt": 'root ::= ("a"|"a"|"a"|"a")*' + ' ("a"|"a")*' * 12,
    "left rec": 'root ::= root "a" | "a"',
    "left rec indirect": 'root ::= x "a"\nx ::= y\ny ::= x | "a"',
    "left rec empty": 'root ::= e root "a" | "a"\ne ::= ""',
    "left rec opt": 'root ::= "b"? root "a" | "a"',
    "right rec deep": 'root ::= "a" root | ""',
    "ambig": 'root ::= s\ns ::= s2 s2 s2 s2 | "a"\ns2 ::= "a" s | "a"',
    "exp": "\n".join(
        ["root ::= r0"] + [f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)] + ['r40 ::= "a"']
    ),
    "exp2": "\n".join(
        ["root ::= r0"] + [f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(30)] + ['r30 ::= "a"']
    ),
    "chain": "\n".join(
        ["root ::= r0"] + [f"r{i} ::= r{i + 1}" for i in range(100000)] + ['r100000 ::= "a"']
    ),
    "chain 20k": "\n".join(
        ["root ::= r0"] + [f"r{i} ::= r{i + 1}" for i in range(20000)] + ['r20000 ::= "a"']
    ),
    "chain 3k": "\n".join(
        ["root ::= r0"] + [f"r{i} ::= r{i + 1}" for i in range(3000)] + ['r3000 ::= "a"']
    ),
    "undefined": "root ::= nothing",
    "noroot": 'x ::= "a"',
    "empty": "",
    "root empty": 'root ::= ""',
    "root empty2": "root ::= ",
    "class empty": "root ::= []",
    "class neg empty": "root ::= [^]+",
    "class neg all": "root ::= [^\\x00-\\U0010FFFF]+",
    "class inv": "root ::= [z-a]+",
    "class open": "root ::= [a",
    "class esc": "root ::= [\\",
    "str esc": 'root ::= "\\',
    "str open": 'root ::= "abc',
    "U big": 'root ::= "\\UFFFFFFFF"',
    "x bad": 'root ::= "\\xZZ"',
    "bad utf8": 'root ::= "\udcff"',
    "surrogate": 'root ::= "\ud800"',
    "nul": 'root ::= "a"\x00 "b"',
    "token ref": "root ::= <[5]>",
    "token ref big": "root ::= <[99999999]>",
    "token ref big2": "root ::= <[4294967295]>",
    "token ref neg": "root ::= !<[5]>*",
    "token ref name": "root ::= <think>",
    "token ref open": "root ::= <[5",
    "any": "root ::= .*",
    "dup rule": 'root ::= "a"\nroot ::= "b"',
    "long name": "root ::= " + "x" * 1000000 + "\n" + "x" * 1000000 + ' ::= "a"',
    "long str": 'root ::= "' + "a" * 5000000 + '"',
    "alts": "root ::= " + "|".join('"a"' for _ in range(200000)),
    "rep neg": 'root ::= "a"{-1}',
    "rep inv": 'root ::= "a"{5,2}',
    "rep ovf": 'root ::= "a"{99999999999999999999}',
    "nullable star": 'root ::= (("a"*)*)* "b"',
    "nullable deep": "root ::= " + "(" * 3000 + '"a"*' + ")*" * 3000,
    "nullable deep 300": "root ::= " + "(" * 300 + '"a"*' + ")*" * 300,
}
SCHEMAS = {
    "deep": '{"type":"array","items":' * 2000 + '{"type":"string"}' + "}" * 2000,
    "deep90": '{"type":"array","items":' * 90 + '{"type":"string"}' + "}" * 90,
    "minItems": '{"type":"array","items":{"type":"string"},"minItems":1000000000}',
    "maxItems": '{"type":"array","items":{"type":"string"},"maxItems":100000000}',
    "minLength": '{"type":"string","minLength":1000000000}',
    "maxLength": '{"type":"string","maxLength":1000000000}',
    "minLength m": '{"type":"string","minLength":1000000}',
    "pattern redos": '{"type":"string","pattern":"^(a+)+$"}',
    "pattern rep": '{"type":"string","pattern":"^a{1000000000}$"}',
    "pattern nested": '{"type":"string","pattern":"^((((a{99}){99}){99}){99})$"}',
    "pattern open": '{"type":"string","pattern":"^((((((("}',
    "ref self": '{"$ref":"#"}',
    "ref loop": '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}',
    "ref http": '{"$ref":"https://127.0.0.1:9/x.json"}',
    "ref file": '{"$ref":"file:///etc/passwd"}',
    "allOf": '{"allOf":[{"$ref":"#"}]}',
    "anyOf exp": '{"anyOf":[' + ",".join('{"type":"string"}' for _ in range(50000)) + "]}",
    "props": '{"type":"object","properties":{'
    + ",".join(f'"a{i}":{{"type":"string"}}' for i in range(3000))
    + "}}",
    "props opt 300": '{"type":"object","properties":{'
    + ",".join(f'"a{i}":{{"type":"string"}}' for i in range(300))
    + "}}",
    "enum big": '{"enum":[' + ",".join(str(i) for i in range(100000)) + "]}",
    "const deep": '{"const":' + "[" * 900 + "]" * 900 + "}",
    "int": '{"type":"integer","minimum":-1e308,"maximum":1e308}',
    "num": "[" * 100000,
    "bool": "true",
    "null": "null",
    "list": "[]",
    "name": '{"type":"object","properties":{"a\\u0000b\\n\\"\\\\":{"type":"string"}},"required":["a\\u0000b\\n\\"\\\\"]}',
    "huge int": '{"type":"string","minLength":' + "9" * 5000 + "}",
}
