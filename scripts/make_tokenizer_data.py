#!/usr/bin/env python3
"""Makes tests/data/text: texts and the ids that HF `tokenizers` gives for them.

Run it in a virtual environment with the package from PyPI (made with tokenizers 0.23.3, Python
3.11; the package is needed here only, never by a build or a test):

    python3 -m venv VENV && VENV/bin/pip install tokenizers==0.23.3
    VENV/bin/python scripts/make_tokenizer_data.py [--train]

It is seeded: the same package writes the same bytes. `--train` also trains the two tokenizers of
the folder again. Without it, the committed ones are kept and only texts and ids are made.

    sample_tokenizer.json  4,096 tokens, Qwen's split expression, NFC, merges as "a b", added tokens
                           of every kind, a template with special tokens at both ends.
    split_tokenizer.json   800 tokens, three Split steps as DeepSeek-V3 has them, no normalizer,
                           merges as pairs, ignore_merges, ByteLevel and template post-processors.
    lines.bin.gz           The texts, as raw bytes: valid and malformed UTF-8.
    NAME.ids.bin.gz        What HF makes of each line, for NAME in abacus, sample, split.
    long_runs.txt          One line a text of about 1 MB: tokenizer, unit in hex, repetitions, the
                           tail in hex, number of ids, FNV-1a 64 of the ids as little-endian int32.

Binary layout, before it is compressed; varint is LEB128, bytes is a varint length and that many bytes:

    lines.bin     varint count, then per line: bytes text
    NAME.ids.bin  ids that add_special_tokens puts before a text, ids that it puts behind, then
                  varint count, then per line:
                  FNV-1a 64, little-endian, of the ids (as little-endian int32) of
                  encode(text, add_special_tokens=False)
                  text of decode(ids, skip_special_tokens=False), or varint 0 when it is the line
                  text of decode(ids, skip_special_tokens=True), or varint 0 when it is the former
    where ids is a varint length and that many varints, and text a varint length plus one and bytes.

HF takes str, so a malformed line enters as bytes.decode("utf-8", "replace").
"""

import argparse
import gzip
import json
import pathlib
import random
import unicodedata

from hash_ids import fnv1a
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "data" / "text"
ABACUS = ROOT / "models" / "abacus-dense" / "tokenizer.json"

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

SENTENCES = """
The baker sold forty-eight rolls before noon, and half as many after that.
Der Zug nach Zürich fährt um Viertel vor sieben; wer läuft, schafft's noch.
Où est passé l'élève qui n'a rien mangé à midi ? Là-bas, près du chêne.
¿Cuántas manzanas quedaron después del almuerzo? ¡Ninguna, señor!
Não há pão na mesa, mas há três maçãs e um coração de açúcar.
Perché il caffè è già freddo? Così non si può più bere.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Zażółć gęślą jaźń, a potem policz do dwunastu.
Két öreg hűtő áll a műhelyben, egyik sem működik.
Ağaçların gölgesinde İstanbul'a bakan küçük bir ev ışıldıyordu.
Mười hai con mèo ngồi trên bậc thềm đợi bữa tối.
Þrír bræður róa út á fjörðinn í þoku og æðarfugl eltir.
Våra grannar på ön målar båten blå varje år.
Старый мост через реку построили в тысяча девятьсот двенадцатом году.
Чи є в тебе ще їжа, чи ґанок уже порожній?
Дали ће њихов џбун преживети љуту зиму?
Η θάλασσα ήταν ήρεμη και τα καΐκια έφευγαν πριν από την αυγή.
Ամեն առավոտ պապը կաթ է բերում գյուղից։
ყოველ დილით მთიდან ნისლი ეშვება სოფელში.
הילדה ספרה שבעה־עשר כוכבים לפני שנרדמה.
שָׁלוֹם לְכֻלָּם, אָמַר הַמּוֹרֶה.
اشترت ليلى خمسة كتب ودفتراً واحداً من السوق القديم.
پدربزرگ هر شب برای نوه‌ها قصه‌ای از کوهستان می‌گفت.
ہر صبح بازار میں تازہ پھل آتے ہیں۔
हर सुबह दादी बगीचे से ताज़े फूल लाती हैं।
প্রতিদিন সকালে নদীর ঘাটে নৌকা ভিড় করে।
ஒவ்வொரு காலையும் மீனவர்கள் கடலுக்குச் செல்கிறார்கள்.
ప్రతి ఉదయం పిల్లలు బడికి నడిచి వెళ్తారు.
ಪ್ರತಿ ಸಂಜೆ ಮಕ್ಕಳು ಕೆರೆಯ ಬಳಿ ಆಡುತ್ತಾರೆ.
എല്ലാ രാവിലെയും പക്ഷികൾ മാവിൻ കൊമ്പിൽ പാടുന്നു.
හැම උදෑසනකම ළමයි ගඟ අසලට යති.
ਹਰ ਸਵੇਰ ਕਿਸਾਨ ਖੇਤਾਂ ਵੱਲ ਤੁਰ ਪੈਂਦਾ ਹੈ।
દરરોજ સવારે દુકાનદાર બારણું ખોલે છે.
ทุกเช้าคุณยายตักบาตรหน้าบ้านก่อนไปตลาด
ທຸກເຊົ້າຊາວນາອອກໄປທົ່ງນາ
រាល់ព្រឹកក្មេងៗដើរទៅសាលារៀន។
မနက်တိုင်း ငါးဖမ်းလှေတွေ ထွက်သွားကြတယ်။
རི་མགོར་ཁ་བ་བབས་སོང་།
每天早上，奶奶都会去市场买三斤苹果和两条鱼。
火車在七點四十五分離開，誰跑得快還趕得上。
毎朝、おばあさんは市場でリンゴを十二個カゴに入れる。
ﾊﾝｶｸｶﾀｶﾅと全角ＡＢＣ１２３が混ざった行。
매일 아침 할머니는 시장에서 사과 열두 개를 산다.
በየቀኑ ጠዋት ልጆቹ ወደ ትምህርት ቤት ይሄዳሉ።
ᐊᓈᓇ ᐅᑉᓛᒃᑯᑦ ᐃᖃᓗᒐᓱᒃᐳᖅ ᓯᑯᒥ.
ᎤᎵᎮᎵᏍᏗ ᎠᏂᏲᎵ ᎠᏂᏁᎶᎲᏍᎦ.
Өглөө бүр эмээ сүү авчирдаг, хүүхдүүд инээнэ.
ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ᠌ ᠦᠨ ᠮᠥᠷ᠎ᠠ
""".strip().split("\n")

CODE = [
    """for (int i = 0; i < n; ++i) sum += a[i] * b[i];""",
    """def f(x):\n\tif x <= 1:\n\t\treturn 1\n\treturn x * f(x - 1)""",
    """std::vector<std::pair<int, float>> v{{1, 2.5f}, {3, -0.0f}};""",
    """SELECT name, COUNT(*) FROM t WHERE id >= 10 GROUP BY name;""",
    """if [[ -z "$X" ]]; then echo 'empty' >&2; fi""",
    """let s = format!("{:>8.3}", x?.y.unwrap_or(0.0)); // ok""",
    """{"a": [1, 2.0, -3e-7, null, true], "b\\u00e9": "\\n"}""",
    """<div class="x">&nbsp;&amp;</div><!-- note -->""",
    """x = {k: v for k, v in zip(a, b) if k != "it's"}""",
    """#include <cstdint>\r\n#define MAX(a,b) ((a)>(b)?(a):(b))\r\n""",
    """\\frac{a}{b} + \\sqrt{x^2 - 1} = \\int_0^\\infty e^{-t}\\,dt""",
    """https://example.org/a/b?c=d&e=%20f#g user.name+tag@mail.example""",
    """print(f"{i:03d}: {'a' if i % 2 else 'b'}")    # four spaces""",
    """\t\t\tdeep();\n\t\t}\n\t}\n}\n\n\n""",
]

EMOJI = """
👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🏴‍☠️ 🏴󠁧󠁢󠁳󠁣󠁴󠁿 👍🏿 ❤️‍🔥 1️⃣ #️⃣ 🇫🇷🇯🇵🇧🇷 ☺️ ☺ ✌🏻 🧑‍🦰 🫱🏼‍🫲🏾 🐻‍❄️ 👁️‍🗨️ 🙂 😀😃😄 🫨 🪿 ⏱️ ‼️ ©️ ®™ ♾️ 🀄 🃏 🅰️
""".split()

CONTRACTIONS = (
    "it's IT'S it'S we're WE'RE we'Re they've THEY'VE I'm I'M i'ſ don't DON'T he'll HE'LL he'lL "
    "she'd SHE'D o'clock rock'n'roll 'tis 'twas ''s 's's ’s it’s 'ſ 'ſt 've'll'd 's_ 'sS 'T 'LLL "
    "'ﬆ 'K 'ſſ 'rE 'vE"
).split(" ")

SPACES = (
    "\t \n \r \r\n \x0b \x0c \x1c \x1f \x85 \xa0 \u1680 \u180e \u2000 \u2003 \u200a \u200b".split(
        " "
    )
    + ["\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", " ", "  ", "   "]
)

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin|>",
    "<|end|>",
    "<tool>",
    "</tool>",
    "<mask>",
    "<pad>",
    "caf\u00e9!",
    "cafe\u0301!",
    "na\u00efve",
    "<|im_",
    "|>",
    "<|",
    "<|im_end|",
    "<|IM_END|>",
    "<<|im_end|>>",
    "<tool",
    "    ",
    "\u00e9\u00e9",
    "\u212b-unit",
    "A\u030a-unit",
]

# Assigned after Unicode 9 (marks that HF's normalizer does not know) or 14 (letters, digits and
# symbols that Debian's PCRE2 does not know).
NEW_MARKS = [
    0x7FD,
    0x898,
    0x8CA,
    0x1DF6,
    0x1AC1,
    0x10F46,
    0x11930,
    0x11935,
    0x11938,
    0x1E2AE,
    0x1E08F,
]
NEW_OTHERS = (
    list(range(0x1C89, 0x1C8B))
    + list(range(0xA7CB, 0xA7CE))
    + list(range(0x10D40, 0x10D66))
    + list(range(0x10D6E, 0x10D90))
    + list(range(0x11F00, 0x11F11))
    + list(range(0x11F50, 0x11F5A))
    + list(range(0x1CCF0, 0x1CCFA))
    + [0x31350, 0x323AF, 0x2EBF0, 0x2EE5D, 0x2B739, 0x1FADF, 0x1E4F3]
    + [0x2FFC, 0x31EF, 0x1B132, 0x16D70, 0x1D2C0, 0x1FAE8, 0x1B4E, 0x1171E, 0x2427, 0x13439]
)


def problems():
    with open(ROOT / "data" / "abacus-test.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def save(tokenizer, path, merges_as_text):
    """Writes tokenizer.json without HF's indentation."""
    data = json.loads(tokenizer.to_str())
    if merges_as_text:
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


def corpus():
    rng = random.Random(7)
    texts = [text for row in problems() for text in (row["question"], row["answer"])]
    # Words of the sentences recombine, so that merges reach over many scripts.
    for sentence in SENTENCES + CODE:
        texts += [sentence] * 12
        words = sentence.split(" ")
        for _ in range(8):
            rng.shuffle(words)
            texts.append(" ".join(words))
        if len(sentence) > 1:
            texts += made_up_words(rng, sentence)
    texts += EMOJI * 12 + CONTRACTIONS * 4
    # What is no space to HF, such as U+180E, joins its neighbours; a merge makes that visible.
    texts += [f"={space}=" for space in SPACES] * 30
    return texts


def made_up_words(rng, sentence):
    """Random walks over the sentence's neighbouring characters, so that more merges are learned."""
    follows = {}
    for left, right in zip(sentence, sentence[1:]):
        follows.setdefault(left, []).append(right)
    words = []
    for _ in range(40):
        word = rng.choice(sentence[:-1])
        while len(word) < 6 and word[-1] in follows:
            word += rng.choice(follows[word[-1]])
        words += [word] * rng.randrange(1, 5)
    return words


def train_sample():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4080,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|end|>"]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken("<mask>", lstrip=True, special=True),
            AddedToken("<pad>", rstrip=True, special=True),
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken("<tool>", normalized=False),
            AddedToken("</tool>", normalized=False),
            AddedToken("cafe\u0301!", normalized=True),  # Found in NFC text only, as its NFC form.
            AddedToken("\u00e9\u00e9", normalized=True),  # Characters that stand for bytes.
            AddedToken("\u212b-unit", normalized=False),  # Found before NFC would change it.
            AddedToken("    ", normalized=False),
            AddedToken("na\u00efve", normalized=True, lstrip=True, rstrip=True),
            AddedToken("<|im_", normalized=False),  # A prefix of longer tokens.
            AddedToken("</tool>\n", normalized=False),
        ]
    )
    ids = {token: tokenizer.token_to_id(token) for token in ("<|begin|>", "<|end|>")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|end|>",
        pair="<|begin|> $A $B:1 <|end|>:1",
        special_tokens=list(ids.items()),
    )
    save(tokenizer, OUT / "sample_tokenizer.json", merges_as_text=True)


def train_split():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in DEEPSEEK]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Byte 0xF1 has no symbol: HF drops what it cannot spell.
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"\u00f1"})
    trainer = trainers.BpeTrainer(vocab_size=795, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>", "<|im_end|>"])
    data = json.loads(tokenizer.to_str())
    # Tokens that no merge makes: ignore_merges alone finds them.
    vocab = data["model"]["vocab"]
    extra = [word for word in ("\u0120together", "xyzzy") if word not in vocab]
    for word in extra:
        vocab[word] = len(vocab)
    for number, token in enumerate(data["added_tokens"]):
        if token["content"] not in vocab:
            token["id"] = len(vocab) + number
    begin = data["added_tokens"][0]["id"]
    data["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": False,
                "use_regex": True,
            },
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {
                    "<|begin|>": {"id": "<|begin|>", "ids": [begin], "tokens": ["<|begin|>"]}
                },
            },
        ],
    }
    save(Tokenizer.from_str(json.dumps(data)), OUT / "split_tokenizer.json", merges_as_text=False)


def random_scalar(rng):
    while True:
        value = rng.randrange(0x110000)
        if not 0xD800 <= value <= 0xDFFF:
            return chr(value)


def assigned(category_prefix):
    return [c for c in range(0x30000) if unicodedata.category(chr(c)).startswith(category_prefix)]


def mixed_line(rng, marks, composites):
    """A short line that puts unlike things next to each other."""
    makers = [
        lambda: random_scalar(rng),
        lambda: chr(rng.choice(marks)),
        lambda: unicodedata.normalize("NFD", chr(rng.choice(composites))),
        lambda: chr(rng.choice(NEW_MARKS)),
        lambda: chr(rng.choice(NEW_OTHERS)),
        lambda: rng.choice(SPACES),
        lambda: rng.choice(CONTRACTIONS),
        lambda: rng.choice(SPECIALS),
        lambda: rng.choice(EMOJI),
        lambda: chr(rng.randrange(0x20)),
        lambda: chr(rng.randrange(0x80, 0xA0)),
        lambda: str(rng.randrange(10 ** rng.randrange(1, 9))),
        lambda: chr(rng.randrange(0x20, 0x7F)) * rng.randrange(1, 5),
        lambda: rng.choice(rng.choice(SENTENCES).split(" ")),
        lambda: rng.choice(["\n", "\r\n", " \n", "\t\n ", "\n\n"]),
    ]
    return "".join(rng.choice(makers)() for _ in range(rng.randrange(1, 14)))


def sentence_line(rng):
    words = rng.choice(SENTENCES).split(" ")
    begin = rng.randrange(len(words))
    line = " ".join(words[begin : begin + rng.randrange(1, 7)])
    form = rng.choice(["NFC", "NFD", None, None])
    return unicodedata.normalize(form, line) if form else line


def special_line(rng):
    parts = []
    for _ in range(rng.randrange(1, 6)):
        parts.append(rng.choice(SPECIALS))
        parts.append(rng.choice(["", " ", "  ", "\n", "x", "é", "'s", " a b ", "\u3000", "1"]))
    return "".join(parts)


def malformed_line(rng):
    data = bytearray(rng.choice([sentence_line, special_line])(rng).encode()[:60] or b"x")
    for _ in range(rng.randrange(1, 4)):
        where = rng.randrange(len(data) + 1)
        data[where:where] = rng.choice(
            [
                bytes([rng.randrange(0x80, 0x100)]),
                b"\xff\xfe",
                b"\xc0\x80",
                b"\xe0\x80\x80",
                b"\xed\xa0\x80\xed\xb0\x80",
                b"\xf4\x90\x80\x80",
                b"\xf0\x9f\x98",
                b"\xe2\x82",
                b"\xf8\x88\x80\x80\x80",
                b"\xf0\x80\x80\x80",
                b"\xc3",
                b"\xef\xbf",
            ]
        )
    if rng.random() < 0.3:
        del data[-1:]
    return bytes(data)


def number_line(rng):
    a, b = rng.randrange(10000), rng.randrange(1000)
    return rng.choice(
        [
            f"{a}*{b}=<<{a}*{b}={a * b}>>{a * b}",
            f"${a:,}.{b:02d} ({b}%)",
            f"{a}/{b or 1} = ?",
            f"-{a}e-{b % 20} ± ½ ⅔ ² Ⅷ ④ ٣٤٥ ४५६ 七 {chr(0x1D7CE + a % 50)}",
            f"0x{a:04X}_{b:b}",
            f"{a // 100:02d}:{b % 60:02d}:{a % 60:02d} 20{b % 100:02d}-0{a % 9 + 1}-1{b % 9}",
        ]
    )


def make_lines():
    rng = random.Random(20240607)
    marks, letters = assigned("M"), assigned("L")
    composites = [c for c in letters if unicodedata.normalize("NFD", chr(c)) != chr(c)]
    lines = ["", " ", "\n", "\x00", "a\x00b", "\ufeffBOM", "\U0010ffff", "\ufffd\uffff"]
    lines += SENTENCES + CODE + EMOJI + CONTRACTIONS + SPECIALS
    lines += ["a" + space + "b" + space + space + "c" + space for space in SPACES]
    lines += [f"={space}=" for space in SPACES]
    lines += [space * count for space in SPACES for count in (1, 2)]
    lines += [chr(c) + "a" + chr(c) + "1" for c in NEW_OTHERS]
    lines += ["e" + chr(c) + "\u0301" + chr(c) for c in NEW_MARKS]
    lines += [
        "q" + "".join(chr(rng.choice(marks)) for _ in range(rng.randrange(2, 12)))
        for _ in range(150)
    ]
    rows = problems()
    lines += [row["question"] for row in rows[:150]] + [row["answer"] for row in rows[150:300]]
    lines += [sentence_line(rng) for _ in range(1300)]
    lines += [mixed_line(rng, marks, composites) for _ in range(1500)]
    lines += [special_line(rng) for _ in range(400)]
    lines += [number_line(rng) for _ in range(300)]
    lines += [
        "".join(chr(rng.choice(letters)) for _ in range(rng.randrange(1, 9))) for _ in range(300)
    ]
    lines += [
        "".join(rng.choice("ab \n\t'sS1.") for _ in range(rng.randrange(1, 30))) for _ in range(300)
    ]
    lines += [" ".join(rng.choice(SENTENCES) for _ in range(20)) for _ in range(3)]
    lines += [unit * 2000 for unit in ("a", " ", "7", "=", "\n", "\u0301", "ab ", "é", "한")]
    lines += ["a" * n for n in range(36, 46)]  # Around the length where the search changes.
    lines = [line.encode() for line in lines]
    return lines + [malformed_line(rng) for _ in range(500)]


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def id_list(ids):
    return varint(len(ids)) + b"".join(map(varint, ids))


def optional(text, default):
    if text == default:
        return varint(0)
    return varint(len(text.encode()) + 1) + text.encode()


def write_gzip(name, data):
    (OUT / name).write_bytes(gzip.compress(data, 9, mtime=0))


def write_lines(name, lines):
    write_gzip(name, varint(len(lines)) + b"".join(varint(len(line)) + line for line in lines))


def write_ids(name, tokenizer, lines):
    (probe,) = tokenizer.encode("x", add_special_tokens=False).ids
    around = tokenizer.encode("x", add_special_tokens=True).ids
    before, behind = around[: around.index(probe)], around[around.index(probe) + 1 :]
    out = bytearray(id_list(before) + id_list(behind) + varint(len(lines)))
    for line in lines:
        text = line.decode("utf-8", "replace")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special_tokens=True).ids == before + ids + behind
        out += fnv1a(ids).to_bytes(8, "little")
        whole = tokenizer.decode(ids, skip_special_tokens=False)
        out += optional(whole, text)
        out += optional(tokenizer.decode(ids, skip_special_tokens=True), whole)
    write_gzip(f"{name}.ids.bin.gz", bytes(out))


def write_long_runs(out_name, paths):
    runs = [
        (" ", 1000000, "x"),
        ("\n", 1000000, ""),
        (" ", 1000000, "\n"),
        ("a", 1000000, ""),
        ("7", 1000000, ""),
        ("=", 1000000, " "),
        ("together", 125000, " 1"),
        ("\u3000", 333333, "a"),
        ("\u0301\u0323", 250000, "z"),
        ("e\u0301", 333333, ""),
        ("毎朝", 166666, "。"),
        ("\U00031350", 250000, ""),
        ("<|im_end|>", 50000, "<|im_end|"),
        ("'s", 300000, ""),
    ]
    with open(OUT / out_name, "w", encoding="ascii") as file:
        for name, path in paths.items():
            tokenizer = Tokenizer.from_file(str(path))
            for unit, count, tail in runs:
                ids = tokenizer.encode(unit * count + tail, add_special_tokens=False).ids
                tail_hex = tail.encode().hex() or "-"
                file.write(
                    f"{name} {unit.encode().hex()} {count} {tail_hex} {len(ids)} "
                    f"{fnv1a(ids):016x}\n"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--train", action="store_true", help="train the two tokenizers again")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if options.train:
        train_sample()
        train_split()
    lines = make_lines()
    write_lines("lines.bin.gz", lines)
    paths = {
        "abacus": ABACUS,
        "sample": OUT / "sample_tokenizer.json",
        "split": OUT / "split_tokenizer.json",
    }
    for name, path in paths.items():
        write_ids(name, Tokenizer.from_file(str(path)), lines)
    write_long_runs("long_runs.txt", paths)
    print(f"{len(lines)} lines, {sum(map(len, lines))} bytes")


if __name__ == "__main__":
    main()
