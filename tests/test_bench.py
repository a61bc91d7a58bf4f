"""Method: `octavo bench` on a real model with lengths so small that its figures say nothing: what is
asserted is the report's shape, that ratios, verdicts, table and picture are of the same rows, and
which flags do not go together. No time and no rate is judged."""

import re
import unittest
import xml.etree.ElementTree

import octavo_testing
from octavo_testing import DENSE, folder, run, run_json

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


if __name__ == "__main__":
    octavo_testing.main()
