"""For the scripts that make test data: a list of token ids in eight bytes."""


def fnv1a(ids):
    """FNV-1a, 64 bits, of the ids as little-endian int32."""
    value = 0xCBF29CE484222325
    for number in ids:
        for byte in number.to_bytes(4, "little"):
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
