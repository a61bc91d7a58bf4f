#!/usr/bin/env python3
"""Makes the folders llama3, deepseek_v2 and deepseek_v3 of tests/data/text, and HF's ids.

They hold tokenizers of few tokens whose pre-tokenizers, added tokens and post-processors are those
of the models.

Run it as make_tokenizer_data.py, whose texts and layouts it shares (tokenizers 0.23.3):

    VENV/bin/python scripts/make_model_tokenizer_data.py [--train]

It is seeded: the same package writes the same bytes. `--train` also trains the tokenizers again.

    FOLDER/tokenizer.json         llama3: one Split, ignore_merges, tokens that no merge makes, BOS
                                  by the template. deepseek_v3: three Splits. deepseek_v2: five
                                  Splits, one of them with a line end, and Digits. The latter two
                                  have fullwidth bars in their added tokens and no BOS in the file.
    FOLDER/tokenizer_config.json  The fields that matter here, as the models have them.
    hard_lines.bin.gz             Texts: digits, CJK mixes, white space before line ends, added
                                  tokens, words of the vocabularies, malformed UTF-8.
    FOLDER.ids.bin.gz             What HF makes of each line.
    hard_long_runs.txt            What HF makes of the long texts.

transformers 4 replaces the post-processor of the DeepSeek folders when it loads them
(LlamaTokenizerFast.update_post_processor); `tokenizers` alone cannot, so this script puts the same
template in. make_chat_data.py compares with transformers itself.
"""

import argparse
import json
import random

import make_tokenizer_data as base
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# With a real CR and LF in it, as the file has them.
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
    "ὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
DEEPSEEK_V2 = (
    "[\r\n]",
    rf"\s?[{CASED}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
)

FOLDERS = ("llama3", "deepseek_v2", "deepseek_v3")
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
LLAMA_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|reserved_special_token_3|>",
    "<|reserved_special_token_30|>",  # The one before is the start of this one, but for "|>".
]
# Of these only the place holders and <|EOT|> are special in DeepSeek-V3.
V3_TOKENS = [
    "<｜place▁holder▁no▁0｜>",
    "<｜place▁holder▁no▁1｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|EOT|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
    "<think>",
    "</think>",
]
BROKEN_TOKENS = [
    "<|User|>",
    "<｜User|>",
    "<｜User｜",
    "<｜place▁holder▁no▁",
    "<|eot_id|",
    "<|EOT_ID|>",
    "<|reserved_special_token_3",
    "｜",
    "▁",
    "<｜",
    "<|",
    "</think",
    "<think >",
]
TOKENS = LLAMA_TOKENS + V3_TOKENS + [BOS, EOS, PAD] + BROKEN_TOKENS

DIGITS = "0123456789٣४৪๔０９¹²½Ⅷ④㊿㉈〇七𝟘𝟵\U00011de5\U00016ff5\U00010d43\U00011f57"
CJK = "每天早上奶奶都会去市场买三斤苹果火車七點離開毎朝カゴにりんごをｶﾀ가나다힣ㄅㄆ、。「」・ー々〆龥龦一丁ࠀࠁ鿿㐀\U00020000\U00031350"
LINE_ENDS = [
    " \n",
    "\t\n",
    "  \r\n",
    " \n\n",
    "\u3000\n",
    " \u2028",
    "\u00a0",
    " \x0b\n",
    "  ",
    "\n ",
]


def base_vocabulary(first):
    """The alphabet, behind the tokens that the model's vocabulary starts with."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {token: number for number, token in enumerate([*first, *alphabet])}


def train(patterns, digits, vocab_size):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    rng = random.Random(11)
    texts = base.corpus()
    texts += ["".join(rng.choice(CJK) for _ in range(4)) for _ in range(800)]
    texts += [str(rng.randrange(1000)) for _ in range(800)]
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())


def renumber(data, first):
    """Puts `first` at the start of the vocabulary, as DeepSeek's files have it."""
    merges = data["model"]["merges"]
    vocab = base_vocabulary(first)
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    data["model"]["vocab"] = vocab


def added(content, number, special, normalized):
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }


def write_folder(name, data, config):
    folder = base.OUT / name
    folder.mkdir(exist_ok=True)
    Tokenizer.from_str(json.dumps(data))  # It loads.
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    for path, content in (("tokenizer.json", data), ("tokenizer_config.json", config)):
        with open(folder / path, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, separators=(",", ":"))
            file.write("\n")


def train_llama3():
    data = train([LLAMA3], digits=False, vocab_size=2600)
    vocab = data["model"]["vocab"]
    # Words that no merge makes, but for ignore_merges.
    words = " ".join(base.SENTENCES[:30]).split(" ")
    for word in [*words[::7], "\u0120together", "xyzzy", "毎朝", "777", "\u0120**"]:
        symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        plain = word.startswith("\u0120")
        spelled = word if plain else "".join(s for s, _ in symbols.pre_tokenize_str(word))
        vocab.setdefault(spelled, len(vocab))
    data["model"]["ignore_merges"] = True
    data["added_tokens"] = [
        added(token, len(vocab) + number, True, False) for number, token in enumerate(LLAMA_TOKENS)
    ]
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
                    {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [
                    {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 1}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {
                    "<|begin_of_text|>": {
                        "id": "<|begin_of_text|>",
                        "ids": [len(vocab)],
                        "tokens": ["<|begin_of_text|>"],
                    }
                },
            },
        ],
    }
    config = {
        "bos_token": "<|begin_of_text|>",
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|eot_id|>",
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_folder("llama3", data, config)


def deepseek_config():
    def token(content):
        return {
            "__type": "AddedToken",
            "content": content,
            "lstrip": False,
            "normalized": True,
            "rstrip": False,
            "single_word": False,
        }

    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": token(BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": token(EOS),
        "legacy": True,
        "model_max_length": 16384,
        "pad_token": token(EOS),
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
    }


def train_deepseek(name, patterns, digits, vocab_size, tokens):
    data = train(patterns, digits, vocab_size)
    renumber(data, [BOS, EOS, PAD])
    first = len(data["model"]["vocab"])
    data["normalizer"] = {"type": "Sequence", "normalizers": []}
    data["added_tokens"] = [
        added(token, number, True, False) for number, token in enumerate([BOS, EOS, PAD])
    ] + [
        added(token, first + number, "holder" in token or token == "<|EOT|>", True)
        for number, token in enumerate(tokens)
    ]
    data["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    write_folder(name, data, deepseek_config())


def digit_line(rng):
    parts = []
    for _ in range(rng.randrange(1, 5)):
        few = rng.sample(DIGITS, 2) if rng.random() < 0.5 else "0123456789"
        parts.append("".join(rng.choice(few) for _ in range(rng.randrange(1, 9))))
        parts.append(rng.choice(["", " ", "a", ".", ",", "年", " kg", "\n", "º", "'s", "－"]))
    return "".join(parts)


def cjk_line(rng):
    parts = []
    for _ in range(rng.randrange(1, 6)):
        parts.append("".join(rng.choice(CJK) for _ in range(rng.randrange(1, 6))))
        parts.append(rng.choice(["", " ", "abc", " Xy", "12", "，", "!", "\n", "é", "\u3000", "ж"]))
    return "".join(parts)


def space_line(rng):
    parts = []
    for _ in range(rng.randrange(1, 6)):
        parts.append(rng.choice(["a", "Б", "中", "!", "1", "", "'s", "x y"]))
        parts.append(rng.choice(LINE_ENDS + base.SPACES))
    return "".join(parts)


def token_line(rng):
    parts = []
    for _ in range(rng.randrange(1, 6)):
        parts.append(rng.choice(TOKENS))
        parts.append(rng.choice(["", " ", "\n", "\n\n", "x", "é", " hi", "  ", "7", "中"]))
    return "".join(parts)


def spell(rng, vocabs):
    """Tokens side by side, and ones cut short: what merges and whole words make of them."""
    parts = []
    for _ in range(rng.randrange(1, 5)):
        word = rng.choice(rng.choice(vocabs))
        parts.append(word if rng.random() < 0.7 else word[: rng.randrange(len(word) + 1)])
    return "".join(parts)


def vocabulary_texts(name):
    """The tokens that are valid UTF-8 by themselves."""
    tokenizer = Tokenizer.from_file(str(base.OUT / name / "tokenizer.json"))
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    texts = [tokenizer.decode([number], skip_special_tokens=False) for _, number in vocab]
    return [text for text in texts if text and "\ufffd" not in text]


def make_lines():
    rng = random.Random(20241226)
    marks, letters = base.assigned("M"), base.assigned("L")
    composites = [c for c in letters if base.unicodedata.normalize("NFD", chr(c)) != chr(c)]
    vocabs = [vocabulary_texts(name) for name in FOLDERS]
    lines = ["", " ", "\n", " \n", "\x00", *TOKENS, *base.EMOJI, *base.SENTENCES[::3], *base.CODE]
    lines += ["7" * n for n in range(1, 11)] + ["中" + "8" * n + "文" for n in range(1, 8)]
    lines += [chr(c) + "1" for c in range(0x11DDE, 0x11DEC)]  # Digits to Digits alone: 11DE0 to E9.
    lines += ["a" + " " * n + end for n in (1, 2, 3) for end in ("中", "\n中", "")]
    makers = (
        [lambda: digit_line(rng)] * 300
        + [lambda: cjk_line(rng)] * 350
        + [lambda: space_line(rng)] * 250
        + [lambda: token_line(rng)] * 350
        + [lambda: spell(rng, vocabs)] * 350
        + [lambda: base.mixed_line(rng, marks, composites)] * 350
        + [lambda: base.sentence_line(rng)] * 250
    )
    lines = [line.encode() for line in lines + [make() for make in makers]]
    return lines + [base.malformed_line(rng) for _ in range(200)]


def write_ids(name, lines):
    path = base.OUT / name / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    if name.startswith("deepseek"):
        bos = tokenizer.token_to_id(BOS)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS}:0 $A:0",
            pair=f"{BOS}:0 $A:0 {BOS}:1 $B:1",
            special_tokens=[(BOS, bos)],
        )
    base.write_ids(name, tokenizer, lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--train", action="store_true", help="train the tokenizers again")
    options = parser.parse_args()
    if options.train:
        train_llama3()
        train_deepseek("deepseek_v2", DEEPSEEK_V2, digits=True, vocab_size=1400, tokens=[])
        train_deepseek("deepseek_v3", DEEPSEEK_V3, digits=False, vocab_size=2600, tokens=V3_TOKENS)
    lines = make_lines()
    base.write_lines("hard_lines.bin.gz", lines)
    for name in FOLDERS:
        write_ids(name, lines)
    base.write_long_runs(
        "hard_long_runs.txt", {name: base.OUT / name / "tokenizer.json" for name in FOLDERS}
    )
    print(f"{len(lines)} lines, {sum(map(len, lines))} bytes")


if __name__ == "__main__":
    main()
