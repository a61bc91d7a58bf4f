"""Method: the generator makes what quantizers with other rules would make of the kit's inputs, one
rule at a time and a few whole quantizers; the program must name each, and pass nothing but ours."""

import contextlib
import io
import json
import pathlib
import struct
import sys
import unittest

import octavo_testing
from octavo_testing import ROOT, folder, run

sys.path.insert(0, str(ROOT / "scripts"))

import make_conformance as kit  # noqa: E402

KIT = "conformance"
# FORMAT: rules of a quantizer in use, and a word of the name under which it is recognised.
QUANTIZERS = [
    ("fp8:element=reciprocal", "Triton"),
    ("fp8:floor=bf16-1e-12", "slime"),
    ("fp8:floor=none", "miles tools"),
    ("fp8:scale=inverse,element=inverse,floor=zero-is-one", "verl"),
    ("fp8:scale=inverse,element=inverse,floor=zero-is-one,padding=last-value", "NeMo"),
    ("fp8:stored=bf16-after,element=reciprocal", "AReaL"),
    ("fp8-tensor:element=bf16,floor=bf16-1e-12,sharing=own", "miles and slime"),
    ("fp8-tensor:scale=inverse,element=inverse,sharing=own", "SGLang"),
    ("mxfp8:mx_scale=floor", "OCP"),
    ("mxfp8:mx_scale=floor,overflow=nan", None),
    ("mxfp8:mx_scale=even", "compressed-tensors"),
    (("nvfp4:nv_global=divide,nv_zero_set=zero,nv_group=six-d,nv_zero_group=38,nv_element=divide,"
      "zero_sign=exact-dropped"), "ModelOpt"),
    (("nvfp4:nv_global=divide,nv_zero_set=zero,nv_group=sixth-over-d,nv_zero_group=08,"
      "nv_small_group=clamped-08,nv_element=two-reciprocals"), "torchao"),
    ("nvfp4:nv_global=double-reciprocal", "nvfp4_online"),
    (("nvfp4-compressed-tensors:nv_global=bf16,nv_group=bf16-sixth,nv_zero_group=20,"
      "nv_element=divisor"), "compressed-tensors"),
]


def aspect_name(field):
    """The report's name of a field of Rules."""
    return field.removeprefix("mx_").removeprefix("nv_")


def judge(work, check=False):
    """(exit code, the report of the one file in `work`)."""
    done = run("conformance", work, "--kit", KIT, "--json", check=check)
    return done.returncode, json.loads(done.stdout)["formats"][0]


class Kit(unittest.TestCase):
    def test_the_committed_bytes_are_what_the_second_implementation_makes(self):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.assertEqual(kit.check(), 0, errors.getvalue())

    def test_it_stays_small(self):
        total = sum(path.stat().st_size for path in (ROOT / KIT).rglob("*") if path.is_file())
        self.assertLessEqual(total, 250_000)

    def test_our_own_bytes_pass(self):
        done = run("conformance", f"{KIT}/expected", "--json")
        report = json.loads(done.stdout)
        self.assertTrue(report["passed"])
        self.assertEqual([one["format"] for one in report["formats"]], kit.FORMATS)
        for one in report["formats"]:
            self.assertEqual(one["cases"], one["cases_passed"])
            for rule in one["rules"]:
                self.assertTrue(rule["ours"] and rule["exact"], (one["format"], rule))


class Rules(unittest.TestCase):
    def test_each_single_rule_is_recognised(self):
        cases = kit.all_cases()
        for fmt, aspects in kit.OTHER_RULES.items():
            for field, names in aspects.items():
                for name in names:
                    with self.subTest(format=fmt, aspect=field, rule=name), folder() as work:
                        _, rules = kit.parse_rules(f"{fmt}:{field}={name}")
                        kit.write(work, {f"{fmt}.safetensors": kit.output_file(fmt, cases, rules)})
                        code, report = judge(work)
                        self.assertEqual(code, 1)
                        self.assertFalse(report["passed"])
                        self.check_rules(report, aspect_name(field), name)

    def check_rules(self, report, aspect, name):
        for rule in report["rules"]:
            self.assertTrue(rule["exact"], rule)
            if rule["aspect"] == aspect:
                self.assertEqual(rule["rule"], name)
            else:
                self.assertTrue(rule["ours"], rule)

    def test_quantizers_in_use_are_named(self):
        cases = kit.all_cases()
        for text, word in QUANTIZERS:
            with self.subTest(quantizer=text), folder() as work:
                fmt, rules = kit.parse_rules(text)
                kit.write(work, {f"{fmt}.safetensors": kit.output_file(fmt, cases, rules)})
                code, report = judge(work)
                self.assertEqual(code, 1)
                for part in text.partition(":")[2].split(","):
                    field, name = part.split("=")
                    found = {rule["aspect"]: rule for rule in report["rules"]}[aspect_name(field)]
                    self.assertTrue(found["exact"], found)
                    self.assertIn(name, [found["rule"], *found["also"]])
                if word:
                    self.assertTrue(any(word in one for one in report["follows"]), report["follows"])
                else:
                    self.assertEqual(report["follows"], [])


class Output(unittest.TestCase):
    """Damage to a file of ours."""

    def damaged(self, fmt, change):
        data = bytearray((ROOT / KIT / "expected" / f"{fmt}.safetensors").read_bytes())
        (header_bytes,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + header_bytes])
        body = data[8 + header_bytes:]
        change(header, body)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(body)

    def report_of(self, fmt, change):
        with folder() as work:
            (work / f"{fmt}.safetensors").write_bytes(self.damaged(fmt, change))
            code, report = judge(work)
            self.assertEqual(code, 1)
            return report

    def test_one_byte_is_found_with_its_place(self):
        def change(header, body):
            body[header["row.weight"]["data_offsets"][0] + 5] ^= 1

        report = self.report_of("mxfp8", change)
        (difference,) = report["differences"]
        self.assertEqual(
            difference,
            {"case": "row", "tensor": "row.weight", "what": "bytes", "index": "[0, 5]",
             "expected": "dc", "got": "dd", "differs": 1})
        self.assertEqual(report["cases"] - report["cases_passed"], 1)
        # One code that no rule makes: the nearest rules are ours, and that is not exact.
        ties = next(rule for rule in report["rules"] if rule["aspect"] == "ties")
        self.assertEqual((ties["rule"], ties["exact"], ties["unexplained"]), ("even", False, 1))

    def test_missing_and_mistyped_tensors(self):
        def retype(header, body):
            header["row.weight"]["dtype"] = "U8"
            header["row.weight_scale_inv"]["shape"] = [1]
            header["other.weight"] = header.pop("gaussian.weight")

        report = self.report_of("fp8", retype)
        found = {one["tensor"]: (one["what"], one["expected"], one["got"])
                 for one in report["differences"]}
        self.assertEqual(found, {"row.weight": ("dtype", "F8_E4M3", "U8"),
                                 "row.weight_scale_inv": ("shape", "[1, 1]", "[1]"),
                                 "gaussian.weight": ("missing", "[6, 256] F8_E4M3", "none")})

    def test_mistakes_of_the_caller(self):
        with folder() as work:
            for args, says in [((work,), "FORMAT.safetensors"),
                               ((work, "--kit", work), "cases.json"),
                               ((), "DIR"), ((work, "--matching", "x"), "either")]:
                done = run("conformance", *args, check=False)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertIn(says, done.stderr)
            (work / "fp8.safetensors").write_bytes(b"nothing")
            done = run("conformance", work, check=False)
            self.assertEqual(done.returncode, 2)
            self.assertIn("fp8.safetensors", done.stderr)
            text = pathlib.Path(ROOT / KIT / "cases.json").read_text()
            (work / "cases.json").write_text(text.replace('"shape"', '"shapes"'))
            done = run("conformance", f"{KIT}/expected", "--kit", work, check=False)
            self.assertEqual(done.returncode, 2)
            self.assertIn("inputs.safetensors", done.stderr)

    def test_text_for_people(self):
        with folder() as work:
            fmt, rules = kit.parse_rules("mxfp8:mx_scale=floor")
            kit.write(work, {f"{fmt}.safetensors": kit.output_file(fmt, kit.all_cases(), rules)})
            done = run("conformance", work, check=False)
        for part in ["mxfp8", "FAILED", "OCP MX v1.0", "floor(log2(amax))", "expected", "no file"]:
            self.assertIn(part, done.stdout)


if __name__ == "__main__":
    octavo_testing.main()
