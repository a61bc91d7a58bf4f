"""The task: word problems like those the abacus models were trained on, and their reward.

Problems for training are drawn here, from a seed; the held-out ones are data/abacus-test.jsonl, and
no drawn problem has the question of one of them. Standard library only.
"""

import dataclasses
import json
import pathlib
import random
import re

NAMES = ("Amir Ava Bella Ben Carl Cleo Dan Dina Ella Finn Gia Hugo Iris Jack Kira Liam Mia Noah "
         "Olga Paul Quinn Rosa Sam Tara Uma Vera Will Xena Yuri Zoe").split()
THINGS = ("apples beads books buttons cards coins cookies marbles muffins oranges pears pencils "
          "plums ribbons rocks shells stamps stickers tickets toys").split()
HOLDERS = "bags baskets boxes cartons crates jars packs trays".split()
PLACES = "fair farm garden library market museum park school shop station".split()
TIMES = {2: "doubles", 3: "triples", 4: "quadruples"}
PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
PERCENTS = (10, 20, 25, 50)
CHANGES_WEIGHTS = (17, 33, 32, 18)  # Of 0 to 3 changes, in percent, as in the test file.
COUNT_MAX = 3300  # The test file has no larger quantity,
SOLD_MAX = 600  # and none that is sold is larger than this.


@dataclasses.dataclass(frozen=True)
class Problem:
    question: str
    answer: int
    difficulty: int  # Number of changes between the first sentence and the question, 0 to 3.
    results: tuple[int, ...] = ()  # What a solution works out line by line, the answer last.

    @property
    def prompt(self) -> str:
        return f"Question: {self.question}\nAnswer:"


def number_in(text: str) -> int | None:
    """The last run of digits, commas left out, as `octavo eval` reads replies (docs/eval.md)."""
    runs = re.findall(r"[0-9]+", text.replace(",", ""))
    if not runs or (len(runs[-1]) > 1 and runs[-1][0] == "0"):
        return None
    return int(runs[-1])


def reward(problem: Problem, reply: str) -> float:
    """1 when the reply, cut where the next question begins, ends in the right number, else 0."""
    return float(number_in(reply.split("Question")[0]) == problem.answer)


def judge(problem: Problem, tokens: list[str]) -> list[tuple[int, bool]]:
    """(end, right) of each line of a solution up to the first wrong one; `end` counts tokens.

    A line is right when the number behind its last `>>`, or behind `####`, is the next of
    `problem.results`. A line without either belongs to the one that follows.
    """
    lines: list[tuple[int, bool]] = []
    text = ""
    for i, token in enumerate(tokens):
        text += token
        if "\n" not in token and i + 1 < len(tokens):
            continue
        if ">>" not in text and "####" not in text and i + 1 < len(tokens):
            continue
        value = number_in(re.split(">>|####", text)[-1])
        is_last = "####" in text or i + 1 == len(tokens)
        expected = problem.results[len(lines)] if len(lines) < len(problem.results) else None
        right = value == expected and is_last == (len(lines) + 1 == len(problem.results))
        lines.append((len(tokens) if is_last else i + 1, right))
        if not right or is_last:
            break
        text = ""
    return lines


def held_out(path: pathlib.Path) -> list[Problem]:
    """The problems of a file of JSON lines with question and answer."""
    problems = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answer = number_in(row["answer"])
        assert answer is not None, f"{path}: no answer in {row['answer']!r}"
        difficulty = len(re.findall(r"[.?](?: |$)", row["question"])) - 2
        if re.search(r" (?:more|times as many) \w+ (?:than|as) ", row["question"]):
            difficulty -= 1  # "B has 3 times as many as A" belongs to the question.
        problems.append(Problem(row["question"], answer, difficulty))
    return problems


@dataclasses.dataclass(frozen=True)
class Mix:
    """How often problems of a kind are drawn."""

    changes: tuple[int, ...] = CHANGES_WEIGHTS  # Weights of 0, 1, 2, 3 changes.
    minus: int = 1  # Weight of a subtraction; other kinds of change have 1.


TEST_MIX = Mix()
# Short problems, and every second change a subtraction: where the base model errs most.
TRAIN_MIX = Mix(changes=(25, 60, 15, 0), minus=5)


class Source:
    """An endless stream of problems that are not in `excluded`; one seed, one stream."""

    def __init__(self, seed: int, excluded: list[Problem], mix: Mix = TEST_MIX):
        self.random = random.Random(seed)
        self.mix = mix
        self.excluded = {problem.question for problem in excluded}

    def take(self, count: int) -> list[Problem]:
        problems = []
        while len(problems) < count:
            problem = draw(self.random, self.mix)
            if problem.question not in self.excluded:
                problems.append(problem)
        return problems


def draw(rng: random.Random, mix: Mix) -> Problem:
    """One problem. `who` owns the things, `other` is whoever else takes part."""
    who, other = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    first, results = beginning(rng, who, thing)
    sentences, count = [first[0]], first[1]
    num_changes = rng.choices(range(len(mix.changes)), mix.changes)[0]
    while len(sentences) <= num_changes:
        sentence, steps = change(rng, who, other, count, mix)
        if sentence and 1 <= steps[-1] <= COUNT_MAX:
            sentences.append(sentence)
            results += steps
            count = steps[-1]
    sentence, steps = ending(rng, who, other, thing, count)
    results += [*steps, (steps or [count])[-1]]
    return Problem(" ".join([*sentences, sentence]), results[-1], num_changes, tuple(results))


def beginning(rng: random.Random, who: str, thing: str) -> tuple[tuple[str, int], list[int]]:
    """((sentence, count), results of its lines in a solution)"""
    kind = rng.randrange(4)
    if kind == 0:
        count = rng.randint(3, 120)
        return (f"{who} has {count} {thing}.", count), []
    if kind == 1:
        daily, days = rng.randint(2, 30), rng.randint(2, 14)
        count = daily * days
        text = f"{who} collects {daily} {thing} every day for {days} days."
    elif kind == 2:
        holders, each = rng.randint(2, 12), rng.randint(2, 24)
        count = holders * each
        text = f"{who} buys {holders} {rng.choice(HOLDERS)} with {each} {thing} in each."
    else:
        found, more = rng.randint(3, 150), rng.randint(3, 150)
        count, place = found + more, rng.choice(PLACES)
        text = f"{who} found {found} {thing} in the morning and {more} more at the {place}."
    return (text, count), [count]


def change(rng: random.Random, who: str, other: str, count: int,
           mix: Mix) -> tuple[str, list[int]]:
    """(sentence, results, the new count last); the sentence is empty where nothing divides."""
    kind = rng.choices(range(6), (1, 1, 1, mix.minus, 1, 1))[0]
    if kind in (0, 1):
        more = rng.randint(2, 99)
        giver = f"Then {who} gets" if kind == 0 else f"{other} gives {who}"
        return f"{giver} {more} more.", [count + more]
    if kind == 2:
        factor = rng.choice(list(TIMES))
        return f"The next week the number {TIMES[factor]}.", [count * factor]
    if kind == 3 and count > 1:
        less = rng.randint(1, count - 1)
        text = rng.choice([f"{who} sells {less} of them.", f"Then {less} of them are lost.",
                           f"{who} gives {less} of them to {other}."])
        return text, [count - less]
    if kind == 4:
        part = rng.choice(list(PARTS))
        if count % part == 0:
            away = count // part
            return f"{who} then gives away {PARTS[part]} of them.", [away, count - away]
    if kind == 5:
        percent = rng.choice(PERCENTS)
        if count * percent % 100 == 0:
            more = count * percent // 100
            return f"The number then grows by {percent}%.", [more, count + more]
    return "", []


def ending(rng: random.Random, who: str, other: str, thing: str,
           count: int) -> tuple[str, list[int]]:
    """(question, results; none where the count is the answer)"""
    divisors = [d for d in range(2, 13) if count % d == 0]
    kind = rng.randrange(4)
    if kind == 0 and divisors:
        friends = rng.choice(divisors)
        text = (f"If {who} shares them equally among {friends} friends, how many does each friend "
                "get?")
        return text, [count // friends]
    if kind == 1 and count <= SOLD_MAX:
        price = rng.randint(2, 15)
        text = f"If {who} sells every one for ${price}, how many dollars does {who} make?"
        return text, [count * price]
    if kind == 2:
        more, factor = rng.randint(2, 60), rng.randint(2, 4)
        if rng.random() < 0.5:
            has, others = f"{more} more {thing} than", count + more
        else:
            has, others = f"{factor} times as many {thing} as", count * factor
        return f"{other} has {has} {who}. How many do they have together?", [others, count + others]
    return f"How many {thing} does {who} have now?", []
