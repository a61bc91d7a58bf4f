"""The inputs of the conformance kit: small BF16 matrices, each with what it is there to show.

Where a case needs a pair of values on which two ways of computing part, the pair was found by
trying all BF16 mantissas, and is written down here.
"""

import dataclasses
import itertools
import random

from make_conformance_formats import E2M1_VALUES, E4M3_VALUES, bf16_bits, bf16_value, f32

FP8_BLOCKS = ("fp8", "fp8-ue8m0")
FP8 = FP8_BLOCKS + ("fp8-channel", "fp8-tensor")
MX = ("mxfp8",)
NV = ("nvfp4", "nvfp4-compressed-tensors")
SHARED = ("fp8-tensor",) + NV
ALL = FP8 + MX + NV


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, int]
    formats: tuple[str, ...]
    shows: str
    bits: tuple[int, ...]  # BF16, row-major.
    shares_scale: str = ""  # Cases with the same entry form one scale-sharing set.

    def values(self) -> list[float]:
        return [bf16_value(bits) for bits in self.bits]


class Random:
    """Nearly normal numbers that are the same on every machine: sums of uniforms, no libm."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def normal(self, deviation: float) -> int:
        total = sum(self._random.getrandbits(24) for _ in range(12)) / 2.0**24 - 6.0
        return bf16_bits(f32(total * deviation))

    def normals(self, count: int, deviation: float = 0.02) -> list[int]:
        return [self.normal(deviation) for _ in range(count)]


def hex_bits(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


WORKED_ROW = hex_bits(
    "0000 3c00 bc80 3cc0 3d00 bd40 3d80 3dc0 be00 3e40 3e80 bec0 3f00 3f20 3f40 bf60 "
    "bda4 bd8f bd76 bd4d bd24 bcf6 bca4 bc24 0000 3c24 3ca4 3cf6 3d24 3d4d 3d76 3d8f")


def padded(bits: list[int], count: int, fill: list[int]) -> list[int]:
    """`bits` and then `fill`, no larger in magnitude than the first, up to `count`."""
    limit = bits[0] & 0x7FFF
    rest = [value for value in fill if value & 0x7FFF <= limit]
    return (bits + rest)[:count]


def general_cases() -> list[Case]:
    rng = Random(1)
    zero_block = rng.normals(4 * 288)
    for row in range(4):
        zero_block[row * 288:row * 288 + 128] = [0x8000 if (row + i) % 5 == 0 else 0
                                                 for i in range(128)]
    zero_block[2 * 288:3 * 288] = [0] * 288
    outlier = rng.normals(4 * 64)
    outlier[70] = bf16_bits(20000.0)
    return [
        Case("row", (1, 32), ALL, "the row worked out in docs/formats.md", tuple(WORKED_ROW)),
        Case("gaussian", (6, 256), ALL, "ordinary weights", tuple(rng.normals(6 * 256))),
        Case("zero_block", (4, 288), ALL, "a block, a row and groups of zeros, some negative",
             tuple(zero_block)),
        Case("all_zero", (2, 32), ALL, "a matrix of zeros, some negative",
             tuple([0, 0x8000] * 16 + [0] * 32)),
        Case("outlier", (4, 64), ALL, "one weight 400,000 times the others: group scales underflow",
             tuple(outlier)),
        Case("width_160", (3, 160), ALL, "a row that is no multiple of 128",
             tuple(rng.normals(480))),
    ]


def magnitude_cases() -> list[Case]:
    rng = Random(2)

    def scaled(amax: float, count: int = 32) -> tuple[int, ...]:
        rest = [bf16_bits(f32(bf16_value(bits) * amax * 10)) for bits in rng.normals(count * 2)]
        return tuple(padded([bf16_bits(f32(amax))], count, rest))

    negative = hex_bits("3f60 8000 0000 8001 b300 b400 b480 b500 b580 b600 3300 0001 b980 b900 "
                        "bb00 ba00 ba80 bb80 3c00 bc00 8000 8000 bd00 3d00")
    return [
        Case("subnormal", (2, 32), ALL, "BF16 subnormals alone",
             tuple([0x0040 - (i % 63) + (0x8000 if i % 3 == 1 else 0) for i in range(64)])),
        Case("tiny_normal", (1, 32), ALL, "largest magnitude 2e-38", scaled(2e-38)),
        Case("amax_5e-13", (1, 32), ALL, "below every floor of amax in use", scaled(5e-13)),
        Case("amax_3e-11", (1, 32), ALL, "between the floors 1e-12 and 1e-10", scaled(3e-11)),
        Case("amax_3e-5", (1, 32), ALL, "between the floors 1e-10 and 1e-4", scaled(3e-5)),
        Case("huge", (1, 32), ALL, "up to the largest BF16 value", scaled(3.3895313892515355e38)),
        Case("negative_zero", (1, 32), ALL, "-0 and negatives that round to it",
             tuple(padded(negative, 32, [0x8000, 0, 0xB380, 0x3380] * 8))),
    ]


def tie_cases() -> list[Case]:
    # Scale 2^-9, from amax 448 * 2^-9; every value half way between two E4M3 codes.
    middles = [(low + high) / 2 for low, high in itertools.pairwise(E4M3_VALUES)]
    e4m3 = []
    for row in range(0, len(middles), 15):
        line = [bf16_bits(0.875)]
        for middle in middles[row:row + 15]:
            bits = bf16_bits(middle * 2.0**-9)
            line += [bits, bits | 0x8000]
        e4m3 += (line + [0] * 32)[:32]
    # D = 2^-12 from amax 2688 * 2^-12, and group scales that are powers of two.
    e2m1 = []
    for group_scale in (448.0, 64.0, 1.0, 0.5):
        step = group_scale * 2.0**-12
        line = [bf16_bits(6 * step)]
        for low, high in itertools.pairwise(E2M1_VALUES):
            bits = bf16_bits((low + high) / 2 * step)
            line += [bits, bits | 0x8000]
        e2m1 += line + [bf16_bits(4 * step)]
    return [
        Case("ties_e4m3", (len(e4m3) // 32, 32), FP8 + MX,
             "values half way between two E4M3 codes, under a scale of 2^-9", tuple(e4m3)),
        Case("ties_e2m1", (2, 32), NV, "values half way between two E2M1 codes", tuple(e2m1)),
    ]


def shape_cases() -> list[Case]:
    rng = Random(3)
    last_largest = rng.normals(3 * 140)
    last_largest[-1] = bf16_bits(0.5)
    return [
        Case("rows_129", (129, 3), FP8_BLOCKS + ("fp8-channel",), "one row more than a block",
             tuple(rng.normals(129 * 3))),
        Case("cols_131", (2, 131), FP8, "three columns more than a block", tuple(rng.normals(262))),
        Case("rows_576", (576, 2), FP8_BLOCKS, "kv_a_proj_with_mqa: five rows of blocks",
             tuple(rng.normals(1152))),
        Case("col_1", (5, 1), FP8, "a single column", tuple(rng.normals(5))),
        Case("last_largest", (3, 140), FP8_BLOCKS,
             "padding with anything but zeros shows in a scale", tuple(last_largest)),
    ]


def scale_cases() -> list[Case]:
    rng = Random(4)
    blocks, rows = [], []
    # 3dc4, 3db6, 3dd2, 3ddd: amax / 448, amax * fl(1/448) and 1 / fl(448/amax) all differ.
    for amax in hex_bits("3dc4 3db6 3dd2 3ddd 3de0 3d80 3d81 3dfa"):
        blocks += padded([amax], 128, rng.normals(400, 0.012))
    for mantissa in range(0, 128, 2):
        rows += padded([0x3D80 + mantissa], 4, rng.normals(20, 0.012))
    groups = []
    # Around the mantissas where the rules for E8M0 scales part: 1, 1.75 and between.
    for amax in hex_bits("3d80 3d81 3dc0 3ddf 3de0 3de1 3dff 3f80 3f81 4060 4061 3a60"):
        groups += padded([amax], 32, [bits + (amax & 0x7F80) - 0x3D80 for bits in
                                      rng.normals(100, 0.03) if bits & 0x7FFF > 0x3900])
    cases = [
        Case("block_scales", (1, 1024), FP8_BLOCKS, "scales on which formulas part",
             tuple(blocks)),
        Case("row_scales", (64, 4), ("fp8-channel",), "half of all BF16 mantissas as amax",
             tuple(rows)),
        Case("group_maxima", (1, len(groups) // 32 * 32), MX,
             "largest magnitudes where the rules for E8M0 scales part", tuple(groups)),
    ]
    for name, amax, values in [
            ("quotients_a", "3d8a", "3a4f 3acf 3b4f 3bcf 3c4f 3ccf 3d4f"),
            ("quotients_b", "3dc4", "3a4b 3aaf 3acb 3b2f 3b4b 3baf 3bcb 3c2f"),
            ("quotients_c", "3dcc", "3a99 3b19 3b99 3c19 3c99 3d19 3d99"),
            ("quotients_d", "3d93", "bb33 3b33 3ab3 bc33"),
            ("quotients_e", "3db6", "3c00"), ("quotients_f", "3ddd", "3c00")]:
        bits = padded(hex_bits(amax + " " + values), 64, rng.normals(200))
        cases.append(Case(name, (1, 64), FP8,
                          "quotients that a reciprocal or BF16 rounds otherwise", tuple(bits)))
    return cases


# A and then largest magnitudes of groups on which the forms of the NVFP4 group scale part.
GROUP_SCALE_TIES = [
    ("3d8c", "367a 362a 3602"), ("3dc4", "3636 3d80 3c80"), ("3d82", "3643 3743 38c3"),
    ("3daa", "367f 377f 387f"), ("3d9c", "366a 376a 3c00"), ("3d92", "365b 375b 3b00"),
    ("3d93", "3552 35bd 3a80"), ("3dc8", "35c8 3900 3d00"), ("3f82", "3843 3f00 3e00"),
]
# A, the largest magnitude of a group, and a value of it that two element rules round otherwise.
FP4_ELEMENTS = [
    ("3de5", "3d6c", "bbe5"), ("3dd2", "3daf", "3c96"), ("3e64", "3ddb", "3cf7"),
    ("3db4", "3be6", "3b07"), ("3d84", "3ba3", "3ac6"), ("3df1", "3c69", "3af1"),
    ("3e36", "3d61", "3bea"), ("3e57", "3cbf", "3bd7"), ("3dc0", "3d11", "3c30"),
]


def nvfp4_cases() -> list[Case]:
    rng = Random(5)
    cases = []
    for amax, maxima in GROUP_SCALE_TIES:
        bits = []
        for largest in hex_bits(amax + " " + maxima):
            small = [value for value in rng.normals(40, 0.01)]
            scaled = [bf16_bits(f32(bf16_value(value) * 20 * bf16_value(largest)))
                      for value in small]
            bits += padded([largest], 16, scaled)
        cases.append(Case(f"groups_{amax}", (1, 64), NV, "group scales on which formulas part",
                          tuple(bits)))
    for amax, largest, value in FP4_ELEMENTS:
        bits = padded(hex_bits(amax), 16, rng.normals(60))
        bits += padded(hex_bits(largest) + hex_bits(value), 16, rng.normals(200, 0.003))
        cases.append(Case(f"elements_{amax}", (1, 32), NV, "codes on which formulas part",
                          tuple(bits)))
    return cases


def shared_cases() -> list[Case]:
    rng = Random(6)
    sets = {"mlp": [("gate_proj", 2, 0.02), ("up_proj", 2, 0.03)],
            "attention": [("q_proj", 2, 0.02), ("k_proj", 1, 0.05), ("v_proj", 1, 0.01)],
            "mla": [("q_a_proj", 2, 0.03), ("kv_a_proj_with_mqa", 1, 0.02)]}
    return [Case(name, (rows, 64), SHARED, "one scale for all members of the set " + set_name,
                 tuple(rng.normals(rows * 64, deviation)), set_name)
            for set_name, members in sets.items() for name, rows, deviation in members]


def all_cases() -> list[Case]:
    cases = (general_cases() + magnitude_cases() + tie_cases() + shape_cases() + scale_cases()
             + nvfp4_cases() + shared_cases())
    for case in cases:
        assert len(case.bits) == case.shape[0] * case.shape[1], case.name
    return cases
