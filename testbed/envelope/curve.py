"""Which 32 bytes are an Ed25519 public key worth trusting.

Signature libraries accept points of small order, points outside the prime-order subgroup and second encodings of the
same point. The first verify signatures on anything, the second and third let two verifiers disagree about the same
bytes. This module refuses all three, by arithmetic on the curve rather than by a list of known bad points. It never
touches secrets, so it needs no constant time, and it runs once for each key loaded.

Source: RFC 8032, sections 5.1.3 (decoding) and 5.1.4 (point arithmetic); Chalkias, Garillot and Nikolaenko, "Taming the
many EdDSAs" (2020), for why each class matters.
"""

from __future__ import annotations

P = 2**255 - 19
"""Prime of the field."""

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Order of the base point's subgroup."""

_D = -121665 * pow(121666, -1, P) % P
_SQRT_MINUS_ONE = pow(2, (P - 1) // 4, P)

_Point = tuple[int, int, int, int]
_IDENTITY: _Point = (0, 1, 1, 0)


def why_unfit(encoded: bytes) -> str | None:
    """Why 32 bytes are no acceptable public key, or None if they are.

    Returns:
        None, or a phrase that completes "expected a canonical point of prime order, found ...".
    """
    if len(encoded) != 32:
        return f"{len(encoded)} bytes instead of 32"
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if y >= P:
        return "a second encoding of a coordinate (y >= p)"
    x = _recover_x(y)
    if x is None:
        return "bytes that are no point of the curve"
    if x == 0 and sign:
        return "a second encoding of a point (x = 0 with the sign bit set)"
    return _why_bad_order(x if x & 1 == sign else P - x, y)


def _why_bad_order(x: int, y: int) -> str | None:
    point = (x, y, 1, x * y % P)
    if _is_identity(_multiply(8, point)):
        return "a point of small order"
    if not _is_identity(_multiply(ORDER, point)):
        return "a point outside the prime-order subgroup"
    return None


def _recover_x(y: int) -> int | None:
    """One of the two x with -x^2 + y^2 = 1 + d x^2 y^2, or None where there is none."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * _SQRT_MINUS_ONE % P
    return root if root * root % P == square else None


def _multiply(factor: int, point: _Point) -> _Point:
    result = _IDENTITY
    while factor:
        if factor & 1:
            result = _add(result, point)
        point = _add(point, point)
        factor >>= 1
    return result


def _add(first: _Point, second: _Point) -> _Point:
    x1, y1, z1, t1 = first
    x2, y2, z2, t2 = second
    a = (y1 - x1) * (y2 - x2) % P
    b = (y1 + x1) * (y2 + x2) % P
    c = 2 * t1 * t2 * _D % P
    d = 2 * z1 * z2 % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def _is_identity(point: _Point) -> bool:
    x, y, z, _ = point
    return x % P == 0 and (y - z) % P == 0
