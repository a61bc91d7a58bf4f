"""Method: `octavo bench` on a real model with lengths so small that its figures say nothing: what is
asserted is the report's shape, that ratios, verdicts, table and picture are of the same rows, and
which flags do not go together. No time and no rate is judged."""

import json
import re
import unittest
import xml.etree.ElementTree

import octavo_testing
from octavo_testing import DENSE, PROBLEMS, folder, run, run_json

FORMATS = ["bf16", "fp8", "nvfp4"]
TINY = ["--input-len", "8", "--output-len", "2", "--repeats", "2", "--threads", "1"]
SVG = "{http://www.w3.org/2000/svg}"
ROW_KEYS = {"format", "recipe", "emulated", "batch", "input_len", "output_len",
            "weight_bytes_per_step", "prefill_tok_per_s", "prefill_tok_per_s_range",
            "decode_tok_per_s", "decode_tok_per_s_range", "share_of_read_bandwidth",
            "share_of_matrix_peak"}
RATIO_KEYS = {"prefill_ratio", "prefill_ratio_range", "decode_ratio", "decode_ratio_range"}


def expected_verdict(row, phase):
    """What must be said of a row's ratio to the first format; None where it is clearly faster."""
    least, most = row[f"{phase}_ratio_range"]
    if least > 1.0:
        return None
    what = "does not pay" if most < 1.0 else "makes no clear difference"
    return (f"{row['format']} {what} in {phase} at batch {row['batch']}, input {row['input_len']}: "
            f"{row[f'{phase}_ratio']:.2f} ({least:.2f} .. {most:.2f}) x bf16")


class Compare(unittest.TestCase):
    def test_reports_rows_ratios_verdicts_and_a_picture(self):
        with folder() as work:
            plot = work / "bench.svg"
            report = run_json("bench", DENSE, "--compare", ",".join(FORMATS), "--batch", "1,2",
                              *TINY, "--plot", plot)
            picture = xml.etree.ElementTree.parse(plot).getroot()
        self.assertEqual(set(report), {"model", "machine", "ops_per_token", "rows", "verdicts"})
        self.assertEqual(set(report["machine"]),
                         {"read_gb_per_s", "matrix_tflop_per_s", "backend", "threads"})
        rows = report["rows"]
        self.assertEqual([(row["batch"], row["format"]) for row in rows],
                         [(batch, name) for batch in (1, 2) for name in FORMATS])
        for row in rows:
            inputs = {"nvfp4_inputs"} if row["format"] == "nvfp4" else set()
            self.assertEqual(set(row), ROW_KEYS | RATIO_KEYS | inputs)
            self.assertTrue(all(row[key]["groups"] > 0 for key in inputs))
            self.assertIn(row["format"], row["recipe"])
            self.assertEqual(row["emulated"], row["format"] == "nvfp4")
            for phase in ("prefill", "decode"):
                least, most = row[f"{phase}_ratio_range"]
                self.assertLessEqual(least, row[f"{phase}_ratio"])
                self.assertLessEqual(row[f"{phase}_ratio"], most)
                if row["format"] == "bf16":
                    self.assertEqual((least, most), (1.0, 1.0))
        self.assertGreater(rows[0]["weight_bytes_per_step"], rows[1]["weight_bytes_per_step"])

        verdicts = [expected_verdict(row, phase) for row in rows if row["format"] != "bf16"
                    for phase in ("prefill", "decode")]
        self.assertEqual(report["verdicts"], [verdict for verdict in verdicts if verdict])

        bars = [bar for bar in picture.iter(f"{SVG}rect") if bar.get("fill") != "white"]
        self.assertEqual(len(bars), 2 * len(rows))
        texts = [text.text for text in picture.iter(f"{SVG}text")]
        for row in rows:
            self.assertIn(f"{row['format']}, batch {row['batch']}", texts)

    def test_prints_a_table_with_ratios_and_every_recipe(self):
        text = run("bench", DENSE, "--compare", "bf16,nvfp4", *TINY,
                   "--nvfp4-input-scale", "pow2").stdout
        self.assertIn("prefill ratio", text)
        self.assertRegex(text, r"(?m)^bf16 +1 +8 +2 ")
        self.assertRegex(text, r"(?m)^nvfp4 +1 +8 +2 ")
        self.assertRegex(text, r"(?m)^nvfp4: serving-\d+/\S*nvfp4-pow2, emulated on this hardware$")

    def test_one_format_has_neither_ratios_nor_verdicts(self):
        report = run_json("bench", DENSE, "--format", "fp8", *TINY)
        self.assertEqual(set(report), {"model", "machine", "ops_per_token", "rows"})
        self.assertEqual([set(row) for row in report["rows"]], [ROW_KEYS])


class Mistakes(unittest.TestCase):
    def refused(self, *args, says):
        done = run("bench", *args, check=False)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertTrue(re.search(says, done.stderr), done.stderr)
        self.assertEqual(done.stdout, "")

    def test_are_named(self):
        self.refused(DENSE, "--compare", "bf16,fp9", *TINY, says="fp9")
        self.refused(DENSE, "--compare", "bf16,fp8", "--format", "fp8", *TINY,
                     says="either --format or --compare")
        self.refused("--url", "http://127.0.0.1:1", "--compare", "bf16,fp8", says="--compare")
        self.refused("--url", "http://127.0.0.1:1", "--plot", "x.svg", says="--plot")

    def test_a_flag_of_the_other_form_is_refused(self):
        for flag in ("--format=fp8", "--keep-last=1", "--policy=x.toml", "--threads=1",
                     "--isa=avx2", "--nvfp4-input-scale=pow2", "--max-total-tokens=64",
                     "--batch=2", "--repeats=2", "--compare=bf16", "--plot=x.svg"):
            with self.subTest(flag=flag):
                self.refused("--url", "http://127.0.0.1:1", flag,
                             says=f"^octavo: {flag.split('=')[0]}.*: expected only beside MODEL")
        for flag in ("--backend=oai", "--random-range-ratio=1", "--request-rate=2", "--seed=2",
                     "--warmup-requests=2", "--flush-cache", f"--tokenizer={DENSE}",
                     "--tokenize-prompt", "--vocab-size=9", "--output-file=x.jsonl"):
            with self.subTest(flag=flag):
                self.refused(DENSE, *TINY, flag,
                             says=f"^octavo: {flag.split('=')[0]}: expected only with --url")
        self.refused(DENSE, *TINY, "--api-key", "k", says="--api-key requires --url")
        done = run("eval", "--url", "http://127.0.0.1:1", "--data", PROBLEMS, "--format", "fp8",
                   check=False)
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn("octavo: --format: expected only beside MODEL", done.stderr)

    def test_a_flag_of_what_does_not_run_is_refused(self):
        for flag in ("--max-total-tokens=64", "--kv-cache-bytes=1MiB", "--kv-cache-fraction=0.5",
                     "--mem-fraction-static=0.5", "--context-length=64", "--disable-radix-cache",
                     "--enable-return-routed-experts", "--max-running-requests=2",
                     "--max-queued-requests=2", "--random-seed=2"):
            with self.subTest(flag=flag):
                self.refused(DENSE, *TINY, flag,
                             says=f"^octavo: {flag.split('=')[0]}: changes nothing beside MODEL")

    def test_a_flag_for_none_of_the_compared_formats_is_refused(self):
        self.refused(DENSE, *TINY, "--compare", "bf16,fp8", "--nvfp4-input-scale", "pow2",
                     says="--nvfp4-input-scale: expected nvfp4 in --compare, got bf16,fp8")
        self.refused(DENSE, *TINY, "--compare", "bf16", "--scope", "mlp",
                     says="--scope: expected a format other than bf16 in --compare, got bf16")

    def test_prompts_and_parallel_are_repeats_and_batch(self):
        self.refused(DENSE, *TINY, "--num-prompts", "4", says="--num-prompts: .* no --repeats")
        self.refused(DENSE, "--batch", "1,2", "--num-prompts", "4", says="--num-prompts: .* one size")
        self.refused(DENSE, *TINY, "--parallel", "2", "--batch", "2", says="--parallel: .* --batch")


class Prompts(unittest.TestCase):
    def test_five_of_them_by_two_are_three_repeats_of_a_batch_of_two(self):
        lengths = ["--input-len", "8", "--output-len", "2", "--threads", "1"]
        done = run("bench", DENSE, *lengths, "--num-prompts", "5", "--parallel", "2", "--json")
        self.assertEqual([row["batch"] for row in json.loads(done.stdout)["rows"]], [2])
        self.assertEqual(re.findall(r"round (\d+)/(\d+)", done.stderr),
                         [("1", "3"), ("2", "3"), ("3", "3")])


if __name__ == "__main__":
    octavo_testing.main()
