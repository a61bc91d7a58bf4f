"""The arithmetic of docs/formats.md a second time: plain Python, sharing nothing with octavo/.

Every function computes with Python floats and rounds each result to FP32 with struct, which rounds
to nearest, ties to even. That is FP32 arithmetic: the exact sum, product or quotient of two FP32
values, rounded to FP64 first, never lands on a tie of FP32 that was none before. Codes come from
sorted tables of all values of a format, not from bit tricks.

Rules names what other quantizers do differently, so that their output can be made (and recognised).
"""

import bisect
import dataclasses
import math
import struct

FLT_MAX = 3.4028234663852886e38

# --- Numbers --------------------------------------------------------------------------------------


def f32(value: float) -> float:
    """`value` rounded to FP32, infinity beyond it."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def divide(numerator: float, denominator: float) -> float:
    """The FP32 quotient with the results of IEEE 754 for zeros and infinities."""
    if math.isnan(numerator) or math.isnan(denominator):
        return math.nan
    sign = math.copysign(1.0, numerator) * math.copysign(1.0, denominator)
    if denominator == 0.0:
        return math.nan if numerator == 0.0 else sign * math.inf
    if math.isinf(numerator) and math.isinf(denominator):
        return math.nan
    return f32(numerator / denominator)


def multiply(left: float, right: float) -> float:
    return f32(left * right)


def bf16_value(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def bf16_bits(value: float) -> int:
    """BF16 nearest to an FP32 value, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    if math.isnan(value):
        return (bits >> 16) | 0x40
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


def bf16(value: float) -> float:
    return bf16_value(bf16_bits(value)) if math.isfinite(value) else value


# --- Rules ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rules:
    """What may differ between quantizers. The defaults are docs/formats.md."""

    # FP8 with FP32 scales: amax / 448, amax * fl(1/448), or 1 / fl(448/amax).
    scale: str = "divide"  # divide, reciprocal, inverse; ue8m0: round-up, round-down
    floor: str = ""  # Of amax; the format's own when empty.
    stored: str = "f32"  # f32, bf16-after (codes made with the FP32 scale), bf16-before
    element: str = "divide"  # divide, reciprocal, inverse, bf16
    padding: str = "zeros"  # zeros, last-value
    # All formats.
    ties: str = "even"  # even, to-zero, away
    zero_sign: str = "kept"  # kept, dropped, exact-dropped
    overflow: str = "saturate"  # saturate, nan
    sharing: str = "set"  # set, own
    # MXFP8.
    mx_scale: str = "round-up"  # round-up, floor, even, ceil
    mx_zero: str = "00"  # 00, 01, 7f
    # NVFP4.
    nv_global: str = "reciprocal-of-s"  # reciprocal-of-s, divide, bf16, double-reciprocal
    nv_zero_set: str = "one"  # one, tiny, zero
    nv_group: str = "s-sixth"  # s-sixth, six-d, sixth-over-d, bf16-sixth, sixth-times-s
    nv_zero_group: str = "00"  # 00, 38, 08, 20
    nv_small_group: str = "rounded"  # rounded, clamped-08, zero-becomes-38, zero-becomes-20
    nv_element: str = "reciprocal"  # reciprocal, divide, two-reciprocals, divisor


OWN_FLOOR = {"fp8": "1e-10", "fp8-ue8m0": "1e-4", "fp8-channel": "bf16-1e-12",
             "fp8-tensor": "1e-12"}
FLOORS = {"1e-10": f32(1e-10), "1e-12": f32(1e-12), "bf16-1e-12": bf16(f32(1e-12)),
          "1e-4": f32(1e-4)}
EPS_IF_ZERO = {"zero-is-one": 1.0, "zero-is-eps": 2.0**-23, "zero-is-bf16-eps": 2.0**-7,
               "zero-is-tiny": 2.0**-126}

# --- Element codes --------------------------------------------------------------------------------

E4M3_VALUES = [(code & 7) / 8 * 2.0**-6 if code < 8
               else (1 + (code & 7) / 8) * 2.0**((code >> 3) - 7)
               for code in range(0x7F)]
E2M1_VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def nearest(table: list[float], magnitude: float, ties: str) -> int:
    """Position in `table` of the value nearest to `magnitude`, which is at most the last."""
    low = bisect.bisect_right(table, magnitude) - 1
    if table[low] == magnitude:
        return low
    middle = (table[low] + table[low + 1]) / 2
    if magnitude != middle:
        return low + (magnitude > middle)
    return {"even": low + (low & 1), "to-zero": low, "away": low + 1}[ties]


def signed_code(value: float, code: int, sign_bit: int, rules: Rules) -> int:
    if math.copysign(1.0, value) > 0:
        return code
    drop = code == 0 and (rules.zero_sign == "dropped"
                          or (rules.zero_sign == "exact-dropped" and value == 0.0))
    return code if drop else code | sign_bit


def e4m3(value: float, rules: Rules = Rules()) -> int:
    if math.isnan(value):
        return 0x7F
    magnitude = abs(value)
    if magnitude > 464.0 and rules.overflow == "nan":
        return signed_code(value, 0x7F, 0x80, rules)
    code = 0x7E if magnitude >= 448.0 else nearest(E4M3_VALUES, magnitude, rules.ties)
    return signed_code(value, code, 0x80, rules)


def e4m3_value(code: int) -> float:
    if code & 0x7F == 0x7F:
        return math.nan
    return math.copysign(E4M3_VALUES[code & 0x7F], -1.0 if code & 0x80 else 1.0)


def e2m1(value: float, rules: Rules = Rules()) -> int:
    if math.isnan(value):
        return 7
    magnitude = abs(value)
    code = 7 if magnitude >= 6.0 else nearest(E2M1_VALUES, magnitude, rules.ties)
    return signed_code(value, code, 8, rules)


def e8m0(value: float) -> int:
    """The smallest byte b with value <= 2^(b - 127), for a value that is not negative."""
    if math.isnan(value):
        return 255
    if value <= 2.0**-127:
        return 0
    mantissa, exponent = math.frexp(min(value, 2.0**127))  # value = mantissa * 2^exponent
    return 127 + exponent - (mantissa == 0.5)


def log2_floor(value: float) -> int:
    return math.frexp(value)[1] - 1


# --- FP8 ------------------------------------------------------------------------------------------


def fp8_scale(fmt: str, amax: float, rules: Rules) -> float:
    floor = rules.floor or OWN_FLOOR[fmt]
    amax = max(amax, FLOORS.get(floor, 0.0))
    if amax == 0.0 and floor in EPS_IF_ZERO:
        return EPS_IF_ZERO[floor]
    if fmt == "fp8-ue8m0":
        return ue8m0_scale(divide(amax, 448.0), rules)
    if rules.scale == "reciprocal":
        return multiply(amax, divide(1.0, 448.0))
    if rules.scale == "inverse":
        return divide(1.0, divide(448.0, amax))
    return divide(amax, 448.0)


def ue8m0_scale(scale: float, rules: Rules) -> float:
    if scale == 0.0:
        return 0.0
    if rules.scale == "round-down":
        return 2.0**max(log2_floor(scale), -126)
    return 2.0**max(e8m0(scale) - 127, -126)


def fp8_codes(values: list[float], amax: float, scale: float, rules: Rules, fmt: str) -> list[int]:
    if fmt == "fp8-ue8m0":
        return [e4m3(divide(value, scale), rules) for value in values]
    if rules.element == "reciprocal":
        inverse = divide(1.0, scale)
        return [e4m3(multiply(value, inverse), rules) for value in values]
    if rules.element == "inverse":
        factor = divide(448.0, max(amax, FLOORS.get(rules.floor or OWN_FLOOR[fmt], 0.0)))
        if math.isinf(factor):
            factor = 1.0
        return [e4m3(multiply(value, factor), rules) for value in values]
    if rules.element == "bf16":
        divisor = bf16(scale)
        return [e4m3(bf16(divide(value, divisor)), rules) for value in values]
    return [e4m3(divide(value, scale), rules) for value in values]


def fp8_unit(fmt: str, values: list[float], amax: float, rules: Rules) -> tuple[float, list[int]]:
    """One block, row or tensor: its stored scale and its codes."""
    scale = fp8_scale(fmt, amax, rules)
    if rules.stored == "bf16-before":
        scale = bf16(scale)
    codes = fp8_codes(values, amax, scale, rules, fmt)
    return (bf16(scale) if rules.stored == "bf16-after" else scale), codes


def amax_of(values) -> float:
    return max((abs(value) for value in values), default=0.0)


def encode_blocks(fmt: str, rows: int, cols: int, values: list[float], rules: Rules) -> dict:
    codes, scales = bytearray(rows * cols), []
    for row in range(0, rows, 128):
        for col in range(0, cols, 128):
            places = [r * cols + c for r in range(row, min(row + 128, rows))
                      for c in range(col, min(col + 128, cols))]
            block = [values[place] for place in places]
            amax = amax_of(block)
            if rules.padding == "last-value" and len(block) < 128 * 128:
                amax = max(amax, abs(values[-1]))
            scale, block_codes = fp8_unit(fmt, block, amax, rules)
            scales.append(scale)
            for place, code in zip(places, block_codes):
                codes[place] = code
    shape = [-(-rows // 128), -(-cols // 128)]
    return {"weight": ("F8_E4M3", [rows, cols], bytes(codes)),
            "weight_scale_inv": ("F32", shape, struct.pack(f"<{len(scales)}f", *scales))}


def encode_channels(rows: int, cols: int, values: list[float], rules: Rules) -> dict:
    codes, scales = b"", []
    for row in range(rows):
        line = values[row * cols:(row + 1) * cols]
        scale, line_codes = fp8_unit("fp8-channel", line, amax_of(line), rules)
        scales.append(scale)
        codes += bytes(line_codes)
    return {"weight": ("F8_E4M3", [rows, cols], codes),
            "weight_scale": ("F32", [rows, 1], struct.pack(f"<{rows}f", *scales))}


def encode_tensor(rows: int, cols: int, values: list[float], amax: float, rules: Rules) -> dict:
    scale, codes = fp8_unit("fp8-tensor", values, amax, rules)
    return {"weight": ("F8_E4M3", [rows, cols], bytes(codes)),
            "weight_scale": ("F32", [], struct.pack("<f", scale))}


# --- MXFP8 ----------------------------------------------------------------------------------------


def mx_byte(amax: float, rules: Rules) -> int:
    if amax == 0.0:
        return int(rules.mx_zero, 16)
    if rules.mx_scale == "round-up":
        return e8m0(multiply(amax, divide(1.0, 448.0)))
    exponent = log2_floor(amax)
    mantissa = amax / 2.0**exponent
    if rules.mx_scale == "even":
        exponent += mantissa >= 1.75
    elif rules.mx_scale == "ceil":
        exponent += mantissa > 1.0
    return min(max(exponent - 8 + 127, 0), 254)


def encode_mxfp8(rows: int, cols: int, values: list[float], rules: Rules) -> dict:
    codes, scales = bytearray(), bytearray()
    for begin in range(0, rows * cols, 32):
        group = values[begin:begin + 32]
        byte = mx_byte(amax_of(group), rules)
        scales.append(byte)
        codes += bytes(e4m3(multiply(value, 2.0**(127 - byte)), rules) for value in group)
    return {"weight": ("F8_E4M3", [rows, cols], bytes(codes)),
            "weight_scale_inv": ("U8", [rows, cols // 32], bytes(scales))}


# --- NVFP4 ----------------------------------------------------------------------------------------


def nv_globals(amax: float, rules: Rules) -> tuple[float, float, float]:
    """(S, which makes codes large; D, which multiplies; the divisor of compressed-tensors)."""
    if amax == 0.0:
        zero_d = {"one": 1.0, "tiny": divide(1.0, FLT_MAX), "zero": 0.0}[rules.nv_zero_set]
        return 1.0, zero_d, 1.0
    large = min(divide(2688.0, amax), FLT_MAX)
    if rules.nv_global == "divide":
        return large, divide(amax, 2688.0), large
    if rules.nv_global == "bf16":
        large = bf16(large)
    if rules.nv_global == "double-reciprocal":
        large = divide(1.0, divide(amax, 2688.0))
    return large, divide(1.0, large), large


def nv_group_byte(amax: float, large: float, small: float, rules: Rules) -> int:
    if amax == 0.0:
        return int(rules.nv_zero_group, 16)
    sixth = divide(1.0, 6.0)
    scale = {"s-sixth": lambda: multiply(amax, multiply(large, sixth)),
             "six-d": lambda: divide(amax, multiply(6.0, small)),
             "sixth-over-d": lambda: divide(divide(amax, 6.0), small),
             "bf16-sixth": lambda: multiply(bf16(divide(amax, 6.0)), large),
             "sixth-times-s": lambda: multiply(divide(amax, 6.0), large)}[rules.nv_group]()
    byte = e4m3(min(scale, 448.0))
    if rules.nv_small_group == "clamped-08":
        return max(byte, 0x08)
    if byte == 0 and rules.nv_small_group.startswith("zero-becomes-"):
        return int(rules.nv_small_group[-2:], 16)
    return byte


def nv_codes(group: list[float], byte: int, large: float, small: float, rules: Rules) -> list[int]:
    scale = e4m3_value(byte)
    if rules.nv_element == "divide":
        step = multiply(scale, small)
        return [e2m1(divide(value, step), rules) for value in group]
    if rules.nv_element == "two-reciprocals":
        factor = divide(divide(1.0, small), scale)
        return [e2m1(multiply(value, factor), rules) for value in group]
    if rules.nv_element == "divisor":
        step = divide(scale, large)
        return [e2m1(divide(value, step), rules) for value in group]
    factor = min(divide(1.0, multiply(scale, small)), FLT_MAX)
    return [e2m1(multiply(value, factor), rules) for value in group]


def encode_nvfp4(fmt: str, rows: int, cols: int, values: list[float], amax: float,
                 rules: Rules) -> dict:
    large, small, divisor = nv_globals(amax, rules)
    scales, codes = bytearray(), []
    for begin in range(0, rows * cols, 16):
        group = values[begin:begin + 16]
        byte = nv_group_byte(amax_of(group), large, small, rules)
        scales.append(byte)
        codes += nv_codes(group, byte, large, small, rules)
    packed = bytes(low | high << 4 for low, high in zip(codes[::2], codes[1::2]))
    group_scales = ("F8_E4M3", [rows, cols // 16], bytes(scales))
    one = struct.pack("<f", 1.0)
    if fmt == "nvfp4-compressed-tensors":
        return {"weight_packed": ("U8", [rows, cols // 2], packed), "weight_scale": group_scales,
                "weight_global_scale": ("F32", [1], struct.pack("<f", divisor)),
                "input_global_scale": ("F32", [1], one)}
    return {"weight": ("U8", [rows, cols // 2], packed), "weight_scale": group_scales,
            "weight_scale_2": ("F32", [], struct.pack("<f", small)),
            "input_scale": ("F32", [], one)}


# --- All ------------------------------------------------------------------------------------------

FORMATS = ["fp8", "fp8-ue8m0", "fp8-channel", "fp8-tensor", "mxfp8", "nvfp4",
           "nvfp4-compressed-tensors"]


def encode(fmt: str, shape: list[int], values: list[float], set_amax: float,
           rules: Rules = Rules()) -> dict:
    """{part: (dtype, shape, bytes)} of a matrix; set_amax is over its scale-sharing set."""
    rows, cols = shape
    amax = amax_of(values) if rules.sharing == "own" else set_amax
    if fmt in ("fp8", "fp8-ue8m0"):
        return encode_blocks(fmt, rows, cols, values, rules)
    if fmt == "fp8-channel":
        return encode_channels(rows, cols, values, rules)
    if fmt == "fp8-tensor":
        return encode_tensor(rows, cols, values, amax, rules)
    if fmt == "mxfp8":
        return encode_mxfp8(rows, cols, values, rules)
    return encode_nvfp4(fmt, rows, cols, values, amax, rules)
