#!/usr/bin/env python3
"""Makes tests/data/text/chat: what HF transformers renders of conversations and of snippets.

Run it in a virtual environment with the packages from PyPI (made with transformers 4.57.6, jinja2
3.1.6, Python 3.11; needed here only, never by a build or a test):

    python3 -m venv VENV && VENV/bin/pip install transformers==4.57.6 jinja2==3.1.6
    VENV/bin/python scripts/make_chat_data.py [--published FOLDER]

    NAME.jinja      Templates that write the formats of Qwen2.5, Qwen3, Llama 3, Llama 3.1,
                    DeepSeek-V3, R1 and V3.1, and plain ChatML. Kept by hand.
    cases.jsonl.gz  One case a line: template, tokenizer (a folder or a tokenizer.json), messages and
                    what else the request has; text, or null where HF fails; a hash of its ids.
    snippets.jsonl.gz
                    One case a line: source, variables; text, or null where Jinja2 fails.

`--published` names a folder with the templates of the models themselves under the same names (the
chat_template of their tokenizer_config.json). Then both must render every conversation without
tools alike, so that what stands in cases.jsonl.gz is what the models were trained on.
"""

import argparse
import datetime
import gzip
import itertools
import json
import pathlib

from hash_ids import fnv1a
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = ROOT / "tests" / "data" / "text"
OUT = TEXT / "chat"

TOKENIZERS = {
    "chatml": "models/abacus-dense",
    "qwen2": "models/abacus-dense",
    "qwen3": "models/abacus-dense",
    "llama3": "tests/data/text/llama3",
    "llama31": "tests/data/text/llama3",
    "deepseek_v3": "tests/data/text/deepseek_v3",
    "deepseek_r1": "tests/data/text/deepseek_v3",
    "deepseek_v31": "tests/data/text/deepseek_v3",
}


def user(content):
    return {"role": "user", "content": content}


def system(content):
    return {"role": "system", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def tool(content):
    return {"role": "tool", "content": content}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {"city": "Zürich", "days": 3, "f": 1.5, "list": [1, True, None], "e": 1e-7, "g": 1e5}
CONVERSATIONS = [
    [user("Hello")],
    [system("Be brief."), user(" Hi there \n")],
    [user("1+1?"), assistant("2"), user("And 2+2?\n")],
    [
        system(" S \n"),
        user("1+1?"),
        assistant("  2 \n"),
        user("x"),
        assistant("y"),
        user("z"),
    ],
    [
        system("日本語で答えて。"),
        user("\u3000émoji 👩🏽‍🚀 \u00a0\u2028"),
        assistant("ok\u00a0"),
        user("<|im_end|>\n<｜User｜><|eot_id|>"),
    ],
    [user("q"), assistant("<think>\nhm\n</think>\n\nanswer"), user("q2")],
    [user("q"), assistant("<think>\nhm\n</think>\n\nanswer")],
    [
        user("q"),
        assistant("answer", reasoning_content="\nbecause\n"),
        user("q2"),
        assistant("\n\nanswer2", reasoning_content="so"),
    ],
    [user("a"), system("mid"), user("b")],
    [system("one"), system("two"), user("b")],
    [assistant("hi"), user("b")],
    [user("b"), assistant("c")],
    [user(""), assistant("")],
    [{"role": "critic", "content": "x"}, user("y")],
    [{"role": "user"}],
    [user(None)],
    [user(7)],
    [user("12345678 ½ Ⅷ ٣٤٥"), assistant("它是 42 。"), user("\tx \r\n y\n\n\n")],
]
TOOL_CONVERSATIONS = [
    [
        user("weather?"),
        assistant("", tool_calls=[call("get_weather", WEATHER)]),
        tool('{"t": 3}'),
        assistant("cold"),
        user("thx"),
    ],
    [
        user("weather?"),
        assistant(None, tool_calls=[call("get_weather", '{"city": "X"}'), call("b", "{}")]),
        tool("r1"),
        tool("r2"),
    ],
    [
        system("s"),
        user("weather?"),
        assistant("let me", tool_calls=[call("get", {}), call("b", {"q": '"\\\n\u0001\u007f'})]),
        tool("r1"),
        tool("r2"),
        assistant("done"),
        user("<tool_response>\nx\n</tool_response>"),
    ],
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Tells <the> weather & "more"',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": []}, "n": {"minimum": 0.5}},
            },
        },
    },
    {"type": "function", "function": {"name": "noop", "parameters": {}}},
]
# What a template may be told, for those that ask.
KWARGS = {
    "qwen3": [{}, {"enable_thinking": False}, {"enable_thinking": True}],
    "llama31": [{}, {"date_string": "1 Jan 2025"}, {"ask_clock": True}],
    "deepseek_v31": [{}, {"thinking": True}, {"thinking": None}],
}

MESSAGES = [system(" s "), user("u"), assistant("a"), user("v")]
VARIABLES = {
    "messages": MESSAGES,
    "x": 7,
    "zero": 0,
    "neg": -3,
    "half": 0.5,
    "big": 1e22,
    "tiny": 1e-7,
    "whole": 2.0,
    "yes": True,
    "no": False,
    "nothing": None,
    "empty": "",
    "text": " aé日👩🏽b ",
    "list": ["a", "b", "c", "d"],
    "dict": {"k": "v", "n": [1, 2], "items": "shadow"},
    "space": "\u00a0\t x \u3000\u2028\x1f",
}
EXPRESSIONS = """
x + 1
x - 10
-x
- x + 1
x * neg
x // 2
neg // 2
x // neg
x % 3
neg % 2
x % neg
x // zero
x % zero
1 + 2 * 3
(1 + 2) * 3
2 * -3
'a' + 'b'
'a' ~ 1 ~ none ~ true ~ missing
'a' 'b' "c"
'a' + 1
(list + ['e']) | join
x == 7
x == 7.0
whole == 2
yes == 1
x != 7 or x < 3
x >= 7 and x <= 7
'a' < 'b'
'b' > 'é'
'a' < 1
not x
not missing
missing == none
missing
missing.attr
missing['attr']
missing + 'x'
nothing.attr
nothing + 'x'
nothing
yes
half
whole
big
tiny
x.attr
text.attr
dict.k
dict['k']
dict.gone
dict['gone'] is defined
dict.k.gone
dict.get('k')
dict.get('gone')
dict.get('gone', 'd')
dict.items() | list | length
list[0]
list[-1]
list[9]
list[-9]
list['a']
list[1:]
list[1:] | join('')
list[:-1] | join('')
list[::-1] | join('')
list[3:0:-2] | join('')
list[-3:-1] | join('')
list[9:] | join('')
list[:9:2] | join('')
list[::0]
list[missing:] | join('')
list['a':]
text[1:4]
text[::-1]
text[2]
text[-2]
text | length
list | length
dict | length
missing | length
nothing | length
x | length
list | first
list | last
text | first
[] | first
[] | last | default('d')
list | join(', ')
list | join
[1, none, 'a'] | join('-')
text | trim
space | trim
x | trim
missing | trim
text | trim | length
'abcba'.strip('ab')
'abcba'.lstrip('ab')
'abcba'.rstrip('ab')
'日a日'.strip('日')
space.strip()
' a  b '.split() | join('|')
' a  b '.split(none, 1) | join('|')
'a,b,,c'.split(',') | join('|')
'a,b,,c'.split(',', 1) | join('|')
'abc'.split('') | join('|')
'abc'.split(1)
'abc'.startswith('ab')
'abc'.endswith('bc')
'abc'.startswith('bc')
'abc'.startswith(1)
'banana'.replace('an', 'AN')
'banana' | replace('a', '')
text.replace('é', 'e')
missing | default('d')
empty | default('d')
empty | default('d', true)
empty | d('e', boolean=true)
nothing | default('d')
x | string + 'y'
dict | tojson
dict | tojson(indent=2)
[] | tojson
[] | tojson(indent=2)
{} | tojson(indent=2)
[[], {}, [1]] | tojson(indent=1)
[half, big, tiny, whole, yes, none, -0] | tojson
text | tojson
'"\\\\\\n\\t\\x01\\x7f/<>&\\'' | tojson
missing | tojson
'b' in list
'e' not in list
'a' in 'cat'
1 in 'cat'
'k' in dict
1 in dict
'a' in missing
'a' in nothing
'a' in x
x is defined and missing is not defined
missing is undefined
nothing is none
nothing is not none
text is string
list is string
dict is mapping
list is mapping
list is iterable
text is iterable
dict is iterable
x is iterable
nothing is iterable
missing is iterable
list is sequence
x is number
half is number
yes is number
text is number
x is integer
half is integer
yes is boolean
yes is true
no is false
x is true
'y' if yes else 'n'
'y' if no
'y' if no else 'n' if no else 'm'
('y' if no else 'n') + 'z'
yes and 'a' or 'b'
no and 'a' or 'b'
empty or 'c'
yes and no
missing or 'm'
[1, 2] == [1, 2]
{'a': 1} == {'a': 1}
{'a': 1, 'b': [2]}['b'][0]
(1, 2) | length
(1) + 1
list | reject('equalto', 'b') | join
list | select('equalto', 'b') | join
list | list | join
text | list | length
dict | items | list | length
missing | items | list | length
messages[0].content | trim + '!'
messages[1:][0]['content']
messages | length - 1
messages[0]['role'] == 'system' and messages[-1].role == 'user'
'\\u00e9\\x41\\n\\t\\\\\\'\\"' | length
'\\u00e9\\x41\\U0001f600'
'tab\\there'
'\\q'
'a
b'
range(3) | list
namespace(a=1).a
namespace(a=1).b is defined
raise_exception('no')
strftime_now('%d %b %Y')
strftime_now('%Y-%m-%d %H:%M')
x if
x +
x y
(x
[1, 2
{'a' 1}
'open
x | nofilter
x is notest
x.nomethod()
nofunction()
1.5
1_000
x ** 2
x / 2
1 < x < 9
x[1
@
""".strip("\n")
STATEMENTS = [
    "a\n{% if yes %}\nb\n{% endif %}\nc",
    "a\n  {% if yes %}  \n  b\n  {% endif %}\nc\n",
    "a\n  {%- if yes -%}  \n  b\n  {%- endif -%}  \n c\n\n",
    "a\n  {%+ if yes +%}\n  b\n  {%+ endif +%}\nc",
    "a {% if yes %} b {% endif %} c",
    "a\n  {{ x }}\n  b",
    "a\n  {{- x -}}\n  b",
    "a\n  {{+ x }}\n",
    "a\n  {# note #}\nb",
    "a\n  {#- note -#}\n  b",
    "a\n  {#+ note +#}\n  b",
    "{# a #}{# b #}\nc",
    "{##}x",
    "{#-#} x",
    "a\r\nb\rc\n",
    "\n",
    "\n\n",
    "",
    "{",
    "{{ '{' }}",
    "{ { x } }",
    "{{ '}}' }}{{ '%}' }}",
    "{{ {'a': {'b': x}}.a.b }}",
    "{% if no %}1{% elif x == 7 %}2{% else %}3{% endif %}",
    "{% if no %}1{% elif no %}2{% else %}3{% endif %}",
    "{% if no %}1{% endif %}",
    "{% for i in list %}{{ i }}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}"
    "{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}",
    "{% for i in list %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }};{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}",
    "{% for i in missing %}x{% else %}none{% endfor %}",
    "{% for i in nothing %}x{% endfor %}",
    "{% for i in x %}x{% endfor %}",
    "{% for c in text %}[{{ c }}]{% endfor %}",
    "{% for k in dict %}{{ k }};{% endfor %}",
    "{% for k, v in dict | items %}{{ k }};{% endfor %}",
    "{% for k, v in list %}{{ k }};{% endfor %}",
    "{% for k, v in ['ab'] %}{{ k }};{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "{% for i in list %}{% if loop.index == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}!",
    "{% for i in list %}{% if i == 'b' %}{% continue %}{% endif %}{{ i }}{% endfor %}!",
    "{% for i in list %}{% for j in list %}{{ loop.index }}{% break %}{% endfor %}{% endfor %}",
    "{% for i in list %}{{ loop.index }}{% for j in [1] %}{{ loop.last }}{% endfor %}"
    "{{ loop.last }}{% endfor %}",
    "{% set y = 1 %}{% for i in list %}{% set y = i %}{{ y }}{% endfor %}{{ y }}",
    "{% set y = 1 %}{% if yes %}{% set y = 2 %}{% endif %}{{ y }}",
    "{% for i in list %}{% set i = 'z' %}{{ i }}{% endfor %}{{ i }}",
    "{% for i in list %}{{ y }}{% set y = i %}{% endfor %}",
    "{% set ns = namespace(n=0, m='') %}{% for i in list %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.m = ns.m ~ i %}{% endfor %}{{ ns.n }}{{ ns.m }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns['a'] }}",
    "{% set dict.k = 1 %}{{ dict.k }}",
    "{% set gone.k = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = [1] %}{{ a }}",
    "{% set a %}x{{ x }}\n{% endset %}[{{ a }}]",
    "{% set messages = messages[1:] %}{{ messages | length }}",
    "{% set a = 'x' if yes else 'y' %}{{ a }}",
    "{% generation %}{{ x }}{% endgeneration %}",
    "{% for i in list %}{% generation %}{{ i }}{% endgeneration %}{% endfor %}",
    "{% if missing.attr %}x{% endif %}",
    "{% if yes %}a",
    "{% for i in list %}a{% endif %}",
    "{% endif %}",
    "{% else %}",
    "{% break %}",
    "{% include 'x' %}",
    "{% macro f() %}x{% endmacro %}{{ f() }}",
    "{% if yes %}{% else %}{% elif no %}{% endif %}",
    "{% for i in list recursive %}{% endfor %}",
    "{% unknown %}",
    "{{ x }",
    "{% if x }",
    "{# open",
    "{{",
    "{%",
    "a {{ x }} b {{ 'c' }}\n{{ x }}\n",
    "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n        {{- m.content }}\n"
    "    {%- else %}\n        {{ m.content }}\n    {%- endif %}\n{%- endfor %}\n",
]


class FixedClock(datetime.datetime):
    """strftime_now must say the same on every run."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 21, 10, 0, 0, tzinfo=tz)


chat_template_utils.datetime = FixedClock


def compiled(source):
    return chat_template_utils._compile_jinja_template(source)


def snippets():
    for source in [f"{{{{ {line} }}}}" for line in expressions()] + STATEMENTS:
        try:
            text = compiled(source).render(**VARIABLES)
        except Exception:
            text = None
        yield {"source": source, "text": text}


def expressions():
    """One a line, but for the string with a line break in it."""
    lines = EXPRESSIONS.split("\n")
    at = lines.index("'a")
    return lines[:at] + ["'a\nb'"] + lines[at + 2 :]


def load(folder):
    path = ROOT / folder
    config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    if config["tokenizer_class"] == "TokenizersBackend":  # What version 5 writes.
        return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    return AutoTokenizer.from_pretrained(path)


def requests(name):
    for messages, kwargs, add in itertools.product(
        CONVERSATIONS + TOOL_CONVERSATIONS, KWARGS.get(name, [{}]), (True, False)
    ):
        yield {"messages": messages, "kwargs": kwargs, "add_generation_prompt": add}
    for messages in [CONVERSATIONS[0], CONVERSATIONS[3], TOOL_CONVERSATIONS[0]]:
        yield {"messages": messages, "kwargs": {}, "add_generation_prompt": True, "tools": TOOLS}


def render(tokenizer, source, request):
    """The text, or None where HF fails."""
    try:
        return tokenizer.apply_chat_template(
            request["messages"],
            tools=request.get("tools"),
            chat_template=source,
            add_generation_prompt=request["add_generation_prompt"],
            tokenize=False,
            **request["kwargs"],
        )
    except Exception:
        return None


def cases(name, published):
    source = (OUT / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = load(TOKENIZERS[name])
    other = None
    if published is not None and (published / f"{name}.jinja").exists():
        other = (published / f"{name}.jinja").read_text(encoding="utf-8")
    num_compared = 0
    for request in requests(name):
        text = render(tokenizer, source, request)
        if other is not None and "tools" not in request and "ask_clock" not in request["kwargs"]:
            expected = render(tokenizer, other, request)
            if text is not None and expected is not None:
                assert text == expected, (name, request, text, expected)
                num_compared += 1
        ids = None if text is None else tokenizer(text, add_special_tokens=False)["input_ids"]
        yield {
            "template": name,
            "tokenizer": TOKENIZERS[name],
            **request,
            "text": text,
        } | ({} if ids is None else {"ids_fnv1a": f"{fnv1a(ids):016x}"})
    if other is not None:
        print(f"{name}: {num_compared} texts as the published template has them")


def check_special_tokens():
    """The BOS of each folder, as transformers 4 adds it, stands in FOLDER.ids.bin.gz too."""
    for folder in ("llama3", "deepseek_v2", "deepseek_v3"):
        tokenizer = AutoTokenizer.from_pretrained(TEXT / folder)
        data = gzip.decompress((TEXT / f"{folder}.ids.bin.gz").read_bytes())
        ids, shift, at = [], 0, 1
        while len(ids) < data[0]:
            value = 0
            while True:
                byte, at = data[at], at + 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            ids.append(value)
        assert tokenizer("")["input_ids"] == ids == [tokenizer.bos_token_id], folder
        assert tokenizer("x")["input_ids"][:1] == ids, folder
        assert tokenizer("x", add_special_tokens=False)["input_ids"][0] != ids[0], folder


def write_lines(name, entries):
    lines = [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries]
    data = "".join(line + "\n" for line in lines).encode()
    (OUT / name).write_bytes(gzip.compress(data, 9, mtime=0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--published", type=pathlib.Path, help="templates of the models")
    options = parser.parse_args()
    check_special_tokens()
    write_lines("snippets.jsonl.gz", itertools.chain([{"variables": VARIABLES}], snippets()))
    write_lines(
        "cases.jsonl.gz", [case for name in TOKENIZERS for case in cases(name, options.published)]
    )


if __name__ == "__main__":
    main()
