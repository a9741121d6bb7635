"""Chat templates that try to get out, to outlast every limit or to fill the memory, by what they try.

    python tests/hostile/templates.py SECONDS SEED

renders the known ones and then random ones. Exit code 1: one took longer than it may, or was refused
in more than one line.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Iterator

# A tuple that holds itself twice, sixty times over: 2^60 leaves.
NESTED = "{% set ns=namespace(l=(1,)) %}{% for i in range(60) %}{% set ns.l=(ns.l,ns.l) %}{% endfor %}"


def _elifs(count: int) -> str:
    branches = "".join(f"{{% elif a=={number} %}}x" for number in range(count))
    return f"{{% if a %}}{branches}{{% endif %}}"


ATTACKS = {
    "strings": (
        "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
        '{% set ns.l = ns.l + ["x"*1000000 ~ i] %}{% endfor %}'
    ),
    "lists": (
        "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
        "{% set ns.l = ns.l + [range(99999)|list] %}{% endfor %}"
    ),
    "in": (
        '{% set a = ["x"*1000000 ~ "a"]*1000000 %}{% set b = "x"*1000000 ~ "b" %}{{ b in a }}'
    ),
    "sort": (
        '{% set x = "x"*1000000 %}{% set a = [x ~ "a", x ~ "b"]*100000 %}'
        "{{ (a|sort(case_sensitive=true))|length }}"
    ),
    "eq": (
        '{% set x = "x"*1000000 %}{% set a = [x ~ "a"]*1000000 %}'
        '{% set b = [x ~ "a"]*1000000 %}{{ a == b }}'
    ),
    "floordiv": (
        '{% set x = ("f"*1000000)|int(0,16) %}{% set y = ("f"*500000)|int(0,16) %}'
        "{{ [x//y,x//y,x//y,x//y,x//y,x//y,x//y,x//y,x//y,x//y,x//y,x//y,x//y,x//y,x//y,x//y,"
        "x//y,x//y,x//y,x//y]|length }}"
    ),
    "constfold slice": (
        '{{ "a"|slice(100000000000)|list|length }}{{ "b"|slice(100000000000)|list|length }}'
    ),
    "slice": '{% set b="b" %}{{ b|slice(100000000000)|list|length }}',
    "batch": '{% set b="b" %}{{ b|batch(1000000000,"x")|list|length }}',
    "batch const": '{{ "b"|batch(3000000000,"x")|list|length }}',
    "sum": "{% set a=[range(99999)|list]*1000000 %}{{ a|sum(start=[])|length }}",
    "strfmt": '{{ "%s"|format("x") }}',
    "count": (
        '{% set x = "a"*1000000 %}{% set y = "a"*500000~"b" %}{% for i in range(1000) %}'
        "{{ x.count(y) }}{{ x.find(y) }}{% endfor %}"
    ),
    "split": (
        "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
        '{% set ns.l = ns.l + [("a "*500000).split()] %}{% endfor %}'
    ),
    "encode": (
        "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
        '{% set ns.l = ns.l + [("a"*1000000).encode()] %}{% endfor %}'
    ),
    "translate": '{% set d = {} %}{{ "a".translate({97: "x"*1000000}) }}',
    "translate2": '{% set t = {97: "x"*1000000} %}{{ ("a"*1000000).translate(t)|length }}',
    "maketrans": '{{ ("a"*1000000).translate("a".maketrans({"a":"x"*1000000}))|length }}',
    "expandtabs": '{{ ("\\t"*1000000).expandtabs(1000)|length }}',
    "expandtabs kw": '{{ ("\t"*1000000).expandtabs(tabsize=1000)|length }}',
    "join": '{{ ["a"*1000000]*1000|join("x") }}',
    "splitlines": '{% set x=("\n"*1000000).splitlines() %}{{ x|length }}',
    "bytes mul": '{% set b="a".encode() %}{{ (b*10000000000)|length }}',
    "bytes mul2": '{% set b="a".encode() %}{% set c = b*4000000000 %}x',
    "bytes center": '{% set b="a".encode() %}{{ b.center(5000000000)|length }}',
    "bytes join": '{% set b=("a"*1000000).encode() %}{{ b.join([b]*100000)|length }}',
    "bytes replace": (
        '{% set b=("a"*1000000).encode() %}{{ b.replace("a".encode(), b)|length }}'
    ),
    "tuple mul": "{{ ((1,2)*100000000)|length }}",
    "int to_bytes": '{{ (1).to_bytes(5000000000,"big")|length }}',
    "int to_bytes2": '{% set x=1 %}{{ x.to_bytes(5000000000,"big")|length }}',
    "int shift": "{{ (1).__lshift__(10**9) }}",
    "dict fromkeys": "{{ {}.fromkeys(range(99999)) |length}}",
    "range list": "{{ range(99999)|list|tojson|length }}",
    "elif": _elifs(20000),
    "elif3": _elifs(2900),
    "elif2": _elifs(900),
    "nest paren": "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}",
    "nest paren90": (
        "{{ ((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
        "(((((((((1))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
        ")))))))))))))))) }}"
    ),
    "nest list": "{{ " + "[" * 190 + "1" + "]" * 190 + " }}",
    "nest list2": (
        "{{ [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[a]]]]]]]]]]]]]]]]]]]]"
        "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]] }}"
    ),
    "nest not": "{{" + " not" * 100000 + " 1 }}",
    "not900": "{{" + " not" * 300 + " a }}",
    "attr chain": "{{ a" + ".b" * 100000 + " }}",
    "attr chain200": "{{ a" + ".b" * 240 + " }}",
    "plus chain": "{{ 1" + "+a" * 100000 + " }}",
    "filters chain": "{{ a" + "|trim" * 240 + " }}",
    "concat": "{{ " + "a~" * 200000 + "a }}",
    "fors": "{% for i in a %}" * 18 + "{% endfor %}" * 18,
    "fors deep": "{% for i in range(9) %}" * 30 + "{% endfor %}" * 30,
    "fors loop": (
        "{% for i in range(99999) %}{% for i in range(99999) %}"
        "{% for i in range(99999) %}{% for i in range(99999) %}"
        "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}{% endfor %}{% endfor %}{% endfor %}"
    ),
    "macro rec": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "macro rec2": "{% macro m(n) %}{{ m(n+1) ~ m(n+1) }}{% endmacro %}{{ m(1) }}",
    "loop rec": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "call rec": (
        "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}"
    ),
    "self": "{% block a %}{{ self.a() }}{% endblock %}",
    "escape1": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "escape2": "{{ cycler.__init__.__globals__ }}",
    "escape3": "{{ namespace.__init__.__globals__.os }}",
    "escape4": "{{ ''|attr('__class__') }}",
    "escape5": (
        "{{ ['__class__']|map('attr','x')|list }}{{ ''|map(attribute='__class__')|list }}"
        "{{ ['a']|map(attribute='__class__')|list }}"
    ),
    "escape6": "{{ ['a']|groupby('__class__')|list }}{{ ['a']|sum(attribute='__class__') }}",
    "escape7": "{{ raise_exception.__globals__ }}{{ strftime_now.__wrapped__ }}",
    "escape8": "{{ self._TemplateReference__context.environment }}",
    "escape9": "{% set x = self._TemplateReference__context %}{{ x }}",
    "escape10": "{{ '{0.__class__}'.format('') }}{{ '{0.__class__}'|format('') }}",
    "escape11": (
        "{% set f='{0.__class__}'.format %}{{ f('') }}"
        "{{ ['{0.__class__}']|map('format','')|list }}{{ joiner.__class__ }}"
    ),
    "escape12": "{{ dict.__base__ }}{{ dict.mro() }}",
    "escape13": "{{ messages.__class__.__base__.__subclasses__() }}",
    "escape14": (
        "{{ 'a'.format_map }}{{ (''.format_map)({}) }}{{ ('{a.__class__}').format_map({'a':1}) }}"
    ),
    "mutate": "{{ messages.append(1) }}{{ messages[0].update({'content':'x'}) }}",
    "strftime": "{{ strftime_now('%Y'*1000000)|length }}",
    "strftime2": "{{ strftime_now('%1000000000Y')|length }}",
    "strftime3": "{{ strftime_now('%099999999d')|length }}",
    "strftime4": "{{ strftime_now('\x00') }}{{ strftime_now('\ud800') }}",
    "random": "{{ range(99999)|random }}",
    "title": "{{ ('a '*500000)|title|length }}",
    "striptags": '{% set x = "<"*1000000 %}{{ x|striptags|length }}',
    "striptags2": '{% set x = "<!--"*250000 %}{{ x|striptags|length }}',
    "wordcount": "{{ ('a '*500000)|wordcount }}",
    "truncate": "{{ ('a '*500000)|truncate(400000)|length }}",
    "truncate2": "{{ ('a'*1000000)|truncate(1, end='x'*1000000)|length }}",
    "escape": (
        "{{ ('<'*1000000)|escape|escape|escape|escape|escape|escape|escape|escape|length }}"
    ),
    "forceescape": (
        "{% set x=('<'*1000000)|escape %}{% for i in range(30) %}"
        "{% set x = x|forceescape %}{% endfor %}{{ x|length }}"
    ),
    "markup mul": "{% set m='a'|safe %}{{ (m*10000000)|length }}",
    "markup mod": "{% set m='%100000000s'|safe %}{{ (m % 'a')|length }}",
    "markup fmt": "{% set m='{0:>100000000}'|safe %}{{ m.format('a')|length }}",
    "markup join": "{% set m=('a'*1000000)|safe %}{{ m.join([m]*100000)|length }}",
    "markup replace": "{% set m=('a'*1000000)|safe %}{{ m.replace('a', m)|length }}",
    "markup center": (
        "{% set m='a'|safe %}{{ m.center(1000000000)|length }}{{ m.ljust(1000000000)|length }}"
    ),
    "markup unescape": (
        "{% set m='&lt;'|safe %}{{ m.unescape() }}{{ m.striptags() }}{{ m.__html__() }}"
    ),
    "markup plus": (
        "{% set ns=namespace(m='a'|safe) %}{% for i in range(40) %}"
        "{% set ns.m = ns.m + ns.m %}{% endfor %}{{ ns.m|length }}"
    ),
    "undefined": "{% set ns=namespace() %}{% for i in range(99) %}{{ ns[i] }}{% endfor %}",
    "int pow": "{{ 2**4000 }}{{ (2**4000)*(2**4000) }}",
    "float": "{{ 1e308*10 }}{{ (1e308*10)|int }}",
    "int hex chain": (
        "{% set ns=namespace(x=('f'*1000000)|int(0,16)) %}{% for i in range(99999) %}"
        "{% set ns.x = ns.x+ns.x %}{% endfor %}"
    ),
    "int unary": "{% set x=('f'*1000000)|int(0,16) %}{{ (x-1)|string }}",
    "int abs": "{{ (('f'*1000000)|int(0,16))|string }}",
    "round": (
        "{{ 1.5|round(1000000000) }}{{ 1|round(-1000000000) }}{{ (1)|round(-5000000) }}"
    ),
    "filesizeformat": "{{ (2**4000)|filesizeformat }}",
    "pad": "{{ 'a'.ljust(999).ljust(1000) }}",
    "nested weigh": (
        "{% set ns=namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l=[ns.l,ns.l] %}"
        "{% endfor %}{{ ns.l }}"
    ),
    "nested weigh deep": (
        "{% set ns=namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l=[ns.l] %}"
        "{% endfor %}{{ ns.l }}"
    ),
    "nested eq": (
        "{% set ns=namespace(l=[1],k=[1]) %}{% for i in range(60) %}"
        "{% set ns.l=[ns.l,ns.l] %}{% set ns.k=[ns.k,ns.k] %}{% endfor %}"
        "{{ ns.l == ns.k }}"
    ),
    "nested deep dealloc": (
        "{% set ns=namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l=[ns.l] %}{% endfor %}x"
    ),
    "nested deep eq": (
        "{% set ns=namespace(l=[1],k=[1]) %}{% for i in range(99999) %}"
        "{% set ns.l=[ns.l] %}{% set ns.k=[ns.k] %}{% endfor %}{{ ns.l==ns.k }}"
    ),
    "nested hash": NESTED + "{% set d={ns.l:1} %}",
    "nested tuple in": NESTED + "{{ ns.l|unique|list }}",
    "nested repr": NESTED + "{{ ns.l|lower }}",
    "nested repr upper": NESTED + "{{ ns.l|upper }}{{ ns.l|trim }}{{ ns.l|title }}",
    "nested repr e": NESTED + "{{ ns.l|e }}",
    "nested raise": NESTED + "{{ raise_exception(ns.l) }}",
    "nested urlencode": NESTED + "{{ ns.l|urlencode }}",
    "nested join sep": NESTED + "{{ ['a','b']|join(ns.l) }}",
    "nested dictsort": NESTED + "{{ {1:ns.l}|dictsort(by='value') }}",
    "nested ns print": NESTED + "{{ ns }}",
    "nested wordcount": NESTED + "{{ ns.l|wordcount }}{{ ns.l|striptags }}",
    "nested cycler": NESTED + "{% set j=joiner(ns.l) %}{{ j() }}{{ j() }}",
    "nested set": NESTED + "{{ ns.l in {1:2} }}",
    "nested getitem": NESTED + "{{ messages[0][ns.l] }}",
}

PIECES = (
    "{% set a = a ~ a %}|{% set ns.l = [ns.l, ns.l] %}|{{ ns.l }}|{% for i in range(999) %}|{% endfor %}|"
    "{% set ns.l = ns.l * 99 %}|{{ ns.l == ns.k }}|{{ a | replace('a', a) }}|{{ a.center(9999) }}|"
    "{% macro m(x) %}{{ m(x) }}{% endmacro %}|{{ m(a) }}|{% set a = a.encode() %}|{{ a * 99999 }}|"
    "{{ '{:>999}'.format(a) }}|{{ '%999s' % a }}|{% if a in ns.l %}|{% endif %}|{{ a | tojson }}|"
    "{% set ns.k = ns.l %}|{{ (9 ** 999) // 7 }}|{{ a.translate({97: a}) }}|{{ ns.l | sum(start=[]) }}"
).split("|")
_MOST = 5.0  # seconds by the clock, also of a busy machine


def random_template(chance: random.Random) -> str:
    start = "{% set ns = namespace(l=[1], k=2) %}{% set a = 'ab' %}"
    return start + "".join(chance.choices(PIECES, k=chance.randint(2, 30)))


def _cases(seed: int) -> Iterator[tuple[str, str]]:
    """Each attack once, then random ones without end."""
    yield from random.Random(seed).sample(sorted(ATTACKS.items()), len(ATTACKS))
    for number in itertools.count():
        name = f"{seed}/{number}"
        yield name, random_template(random.Random(name))


def run(seconds: float, seed: int) -> tuple[int, list[str]]:
    """How many were tried, and what was wrong."""
    from ggext.chat import template
    from ggext.chat.renderer import renderer
    from ggext.chat.transcript import Turn

    end, tried, wrong = time.monotonic() + seconds, 0, []
    for name, source in _cases(seed):
        if time.monotonic() > end:
            break
        renderer.compile("", _MOST)  # the process runs, and its start is no template's
        began = time.monotonic()
        try:
            template.ChatTemplate(source, {"bos_token": "<s>"}).render(
                [Turn("user", "hi")]
            )
            said = ""
        except template.TemplateError as refused:
            said = str(refused)
        except Exception as error:  # noqa: BLE001 - the fuzzer reports it
            wrong.append(f"{name}: {error!r:.200}")
            continue
        took = time.monotonic() - began
        if took > _MOST or not said.isprintable():
            wrong.append(f"{name}: {took:.1f} s, {said!r:.200}")
        tried += 1
    return tried, wrong


def main() -> int:
    tried, wrong = run(float(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(f"seed {sys.argv[2]}: {tried:,} templates\n")
    for problem in wrong:
        sys.stdout.write(f"{problem}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
