#!/usr/bin/env python3
"""Writes the conformance kit, conformance/: inputs, and the bytes that each format makes of them.

Standard library only, and nothing of octavo/: a second implementation of docs/formats.md.

    make_conformance.py                         writes conformance/
    make_conformance.py --check                 exit 1 when conformance/ holds other bytes
    make_conformance.py --list-rules            FORMAT ASPECT RULE, one a line: rules not ours
    make_conformance.py --rule FORMAT:ASPECT=RULE[,...] --out DIR
                                                the output of a quantizer with other rules
"""

import argparse
import dataclasses
import json
import math
import pathlib
import struct
import sys

from make_conformance_cases import Case, all_cases
from make_conformance_formats import FORMATS, Rules, amax_of, e2m1, e4m3, e8m0, encode, f32

KIT = pathlib.Path(__file__).resolve().parent.parent / "conformance"
DTYPE_BYTES = {"U8": 1, "F8_E4M3": 1, "BF16": 2, "F32": 4}


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A safetensors file: wide elements first, so that each tensor begins at a multiple."""
    header, buffer = {"__metadata__": {"format": "pt"}}, b""
    for name in sorted(tensors, key=lambda name: (-DTYPE_BYTES[tensors[name][0]], name)):
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(buffer), len(buffer) + len(data)]}
        buffer += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + buffer


def set_maxima(cases: list[Case]) -> dict[str, float]:
    """The largest magnitude of the scale-sharing set of each case, by case."""
    of_set: dict[str, float] = {}
    for case in cases:
        key = case.shares_scale or case.name
        of_set[key] = max(of_set.get(key, 0.0), amax_of(case.values()))
    return {case.name: of_set[case.shares_scale or case.name] for case in cases}


def output_file(fmt: str, cases: list[Case], rules: Rules) -> bytes:
    maxima = set_maxima(cases)
    tensors = {}
    for case in cases:
        if fmt in case.formats:
            parts = encode(fmt, list(case.shape), case.values(), maxima[case.name], rules)
            tensors.update({f"{case.name}.{part}": tensor for part, tensor in parts.items()})
    return safetensors(tensors)


def elements() -> dict:
    """Single conversions, to try a codec with before a whole quantizer."""

    def table(function, values, digits):
        return [[struct.pack(">f", value).hex(), f"{function(value):0{digits}x}"]
                for value in values]

    infinities = [math.inf, -math.inf, math.nan]
    return {
        "about": "FP32 input as big-endian hexadecimal bits, expected code in hexadecimal",
        "e4m3": table(e4m3, [448.0, 464.0, f32(464.0001), 480.0, *infinities, -0.0, 2.0**-10,
                             2.0**-10 * (1 + 2.0**-23), 1.5 * 2.0**-9, -(2.0**-11)], 2),
        "e2m1": table(e2m1, [0.25, f32(0.2501), f32(-0.1), -0.0, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0,
                             f32(5.01), 7.0, *infinities], 1),
        "e8m0_round_up": table(e8m0, [0.0, 2.0**-127, f32(5.9e-39), 2.0**-126, 1.0, 1 + 2.0**-23,
                                      2.0, f32(3.4e38), math.inf, math.nan], 2),
    }


def case_list(cases: list[Case]) -> dict:
    rows = []
    for case in cases:
        row = {"name": case.name, "shape": list(case.shape), "formats": list(case.formats),
               "shows": case.shows}
        if case.shares_scale:
            row["shares_scale"] = case.shares_scale
        if len(case.bits) <= 64:
            row["input"] = struct.pack(f"<{len(case.bits)}H", *case.bits).hex()
        rows.append(row)
    return {"schema": 1, "inputs": "inputs.safetensors", "outputs": FORMATS, "cases": rows}


def json_lines(value: dict) -> bytes:
    """JSON with one line for each entry of a list."""
    parts = []
    for key, entry in value.items():
        if isinstance(entry, list) and entry and isinstance(entry[0], (dict, list)):
            lines = ",\n".join("    " + json.dumps(item) for item in entry)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(entry)}")
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode()


def kit_files() -> dict[str, bytes]:
    cases = all_cases()
    inputs = {f"{case.name}.weight": ("BF16", list(case.shape),
                                      struct.pack(f"<{len(case.bits)}H", *case.bits))
              for case in cases}
    files = {"cases.json": json_lines(case_list(cases)), "elements.json": json_lines(elements()),
             "inputs.safetensors": safetensors(inputs)}
    for fmt in FORMATS:
        files[f"expected/{fmt}.safetensors"] = output_file(fmt, cases, Rules())
    return files


# --- Rules of others ------------------------------------------------------------------------------

_FLOORS = ["none", "zero-is-one", "zero-is-eps", "zero-is-bf16-eps"]
_ELEMENT = {"ties": ["to-zero", "away"], "zero_sign": ["dropped", "exact-dropped"]}
_FP8 = {"scale": ["reciprocal", "inverse"], "stored": ["bf16-after", "bf16-before"],
        "element": ["reciprocal", "inverse", "bf16"], **_ELEMENT}
_BLOCKS = {**_FP8, "padding": ["last-value"]}
_NV = {"nv_group": ["six-d", "sixth-over-d", "bf16-sixth", "sixth-times-s"],
       "nv_zero_group": ["38", "08", "20"],
       "nv_small_group": ["clamped-08", "zero-becomes-38", "zero-becomes-20"],
       "nv_element": ["divide", "two-reciprocals", "divisor"], "sharing": ["own"], **_ELEMENT}
OTHER_RULES = {
    "fp8": {**_BLOCKS, "floor": ["1e-12", "bf16-1e-12", "1e-4", *_FLOORS]},
    "fp8-ue8m0": {"scale": ["round-down"], "padding": ["last-value"],
                  "floor": ["1e-10", "1e-12", "zero-is-one", "zero-is-tiny"], **_ELEMENT},
    "fp8-channel": {**_FP8, "floor": ["1e-10", "1e-12", "1e-4", *_FLOORS]},
    "fp8-tensor": {**_FP8, "floor": ["1e-10", "bf16-1e-12", "1e-4", *_FLOORS], "sharing": ["own"]},
    "mxfp8": {"mx_scale": ["floor", "even", "ceil"], "mx_zero": ["01", "7f"], **_ELEMENT},
    "nvfp4": {"nv_global": ["divide", "bf16", "double-reciprocal"],
              "nv_zero_set": ["tiny", "zero"], **_NV},
    "nvfp4-compressed-tensors": {"nv_global": ["bf16", "double-reciprocal"], **_NV},
}


def parse_rules(text: str) -> tuple[str, Rules]:
    fmt, _, assignments = text.partition(":")
    changes = dict(part.split("=") for part in assignments.split(",") if part)
    return fmt, dataclasses.replace(Rules(), **changes)


def write(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def check() -> int:
    wrong = [name for name, data in kit_files().items()
             if not (KIT / name).exists() or (KIT / name).read_bytes() != data]
    for name in wrong:
        print(f"{KIT.name}/{name}: expected other bytes; run scripts/make_conformance.py",
              file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes or checks the conformance kit.")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--list-rules", action="store_true")
    parser.add_argument("--rule", metavar="FORMAT:ASPECT=RULE")
    parser.add_argument("--out", type=pathlib.Path, default=KIT)
    args = parser.parse_args()
    if args.check:
        return check()
    if args.list_rules:
        for fmt, aspects in OTHER_RULES.items():
            for aspect, names in aspects.items():
                for name in names:
                    print(fmt, aspect, name)
        return 0
    if args.rule:
        fmt, rules = parse_rules(args.rule)
        write(args.out, {f"{fmt}.safetensors": output_file(fmt, all_cases(), rules)})
        return 0
    write(args.out, kit_files())
    return 0


if __name__ == "__main__":
    sys.exit(main())
