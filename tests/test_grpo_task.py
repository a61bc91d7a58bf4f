"""Method: the task of examples/grpo_abacus judges solutions of the test file, whole and damaged;
drawn problems are checked for what the trainer relies on."""

import dataclasses
import json
import pathlib
import re
import sys
import unittest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent),
                str(pathlib.Path(__file__).resolve().parent.parent / "examples" / "grpo_abacus")]

import octavo_testing
import task

DATA = octavo_testing.ROOT / octavo_testing.PROBLEMS


def solved():
    """(problem with its results, solution) of the test file."""
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    for problem, row in zip(task.held_out(DATA), rows):
        results = [int(x) for x in re.findall(r">>(\d+)", row["answer"])]
        yield dataclasses.replace(problem, results=(*results, problem.answer)), row["answer"]


def tokens_of(text):
    return re.findall(r"\d|[a-zA-Z]+|.|\n", text)


class TaskTest(unittest.TestCase):
    def test_every_line_of_a_right_solution_is_right(self):
        for problem, solution in solved():
            tokens = tokens_of(solution)
            lines = task.judge(problem, tokens)
            self.assertEqual([right for _, right in lines], [True] * len(problem.results))
            self.assertEqual(lines[-1][0], len(tokens))
            self.assertEqual(task.reward(problem, f" {solution}\n\nQuestion: 1"), 1.0)

    def test_judging_ends_at_the_first_wrong_line(self):
        problem = task.Problem("", 7, 0, (5, 7, 7))
        text = "2+3=<<2+3=5>>5.\n5+2=<<5+2=8>>8.\n#### 8"
        self.assertEqual([right for _, right in task.judge(problem, tokens_of(text))],
                         [True, False])
        self.assertEqual(task.judge(problem, tokens_of("no idea")), [(3, False)])
        early = task.judge(problem, tokens_of("2+3=<<2+3=5>>5.\n#### 7"))
        self.assertEqual([right for _, right in early], [True, False])
        self.assertEqual(task.reward(problem, text), 0.0)

    def test_numbers_are_read_as_the_evaluation_reads_them(self):
        for text, value in (("is 1,234.", 1234), ("3.50", 50), ("007", None), ("none", None)):
            self.assertEqual(task.number_in(text), value)

    def test_drawn_problems_follow_their_seed_and_are_not_held_out(self):
        held_out = task.held_out(DATA)
        problems = task.Source(3, held_out).take(500)
        self.assertEqual(problems, task.Source(3, held_out).take(500))
        self.assertNotEqual(problems, task.Source(4, held_out).take(500))
        self.assertFalse({x.question for x in problems} & {x.question for x in held_out})
        excluded = task.Source(3, problems[:1]).take(500)
        self.assertNotIn(problems[0].question, {x.question for x in excluded})
        for problem in problems:
            self.assertEqual(problem.results[-1], problem.answer)
            self.assertTrue(all(result >= 1 for result in problem.results))

    def test_drawn_problems_are_as_hard_as_those_held_out(self):
        def shares(problems):
            return [sum(x.difficulty == k for x in problems) / len(problems) for k in range(4)]

        # Four standard errors of a share of 0.33 over 1,319 and 2,000 problems: 0.07.
        for held, drawn in zip(shares(task.held_out(DATA)), shares(task.Source(5, []).take(2000))):
            self.assertAlmostEqual(held, drawn, delta=0.07)


if __name__ == "__main__":
    octavo_testing.main()
