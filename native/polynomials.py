"""Writes polynomials.h: the polynomials by which the encoder has GELU and powers of two, and their errors.

    python native/polynomials.py > native/polynomials.h

Both are interpolated at Chebyshev nodes in double precision and rounded to float once. The errors are
measured in float, as the encoder evaluates them: by Horner's rule, with fused multiply-adds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.polynomial import chebyshev

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats: TypeAlias = np.float32 | NDArray[np.float32]

# Beyond it the normal distribution's tail is less than a float's last place beside 1.
CLAMP: Final = 5.25
GELU_DEGREE: Final = 14
EXP2_DEGREE: Final = 5


def main() -> None:
    gelu = coefficients(central, GELU_DEGREE)
    exp2 = coefficients(lambda t: 2 ** (t / 2), EXP2_DEGREE)
    # In x itself, of which the Chebyshev variable is twice.
    exp2 = (exp2.astype(np.float64) * 2.0 ** np.arange(EXP2_DEGREE + 1)).astype(np.float32)
    print("// Made by polynomials.py. Errors are measured in float, against double precision.")
    print("#pragma once\n")
    write("GELU", gelu, f"largest error {gelu_error(gelu):.1e} for x from -12 to 12")
    print(f"constexpr float GELU_CLAMP = {CLAMP}f;")
    print(f"constexpr float GELU_SCALE = {float(np.float32(2 / CLAMP**2))!r}f;\n")
    write("EXP2", exp2, f"largest relative error {exp2_error(exp2):.1e} for x from -1/2 to 1/2")


def central(t: float) -> float:
    """Return (cdf(z) - 1/2) / z of the normal distribution, where t = 2 z^2 / CLAMP^2 - 1."""
    z = CLAMP * math.sqrt((t + 1) / 2)
    return math.erf(z / math.sqrt(2)) / 2 / z if z else 1 / math.sqrt(2 * math.pi)


def coefficients(function: Callable[[float], float], degree: int) -> NDArray[np.float32]:
    """Return a polynomial on [-1, 1], lowest power first."""
    fit = chebyshev.chebinterpolate(np.vectorize(function), degree)
    return chebyshev.cheb2poly(fit).astype(np.float32)


def horner(polynomial: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    result = np.full_like(x, polynomial[-1])
    for coefficient in polynomial[-2::-1]:
        result = fused(result, x, coefficient)
    return result


def fused(a: NDArray[np.float32], b: Floats, c: Floats) -> NDArray[np.float32]:
    # The product of two floats is exact in double precision, so that only the sum's last place can
    # differ from a fused multiply-add, and rarely does.
    return (a.astype(np.float64) * b + c).astype(np.float32)


def gelu_error(polynomial: NDArray[np.float32]) -> float:
    x = np.linspace(-12, 12, 2_000_001).astype(np.float32)
    z = np.clip(x, np.float32(-CLAMP), np.float32(CLAMP))
    u = fused(z * z, np.float32(2 / CLAMP**2), np.float32(-1))
    found = x * fused(z, horner(polynomial, u), np.float32(0.5))
    exact = [v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()]
    return float(np.abs(found - np.array(exact)).max())


def exp2_error(polynomial: NDArray[np.float32]) -> float:
    x = np.linspace(-0.5, 0.5, 1_000_001).astype(np.float32)
    return float(np.abs(horner(polynomial, x) / np.exp2(x.astype(np.float64)) - 1).max())


def write(name: str, polynomial: NDArray[np.float32], error: str) -> None:
    numbers = ",\n    ".join(f"{float(value)!r}f" for value in polynomial)
    print(f"// Lowest power first; {error}.")
    print(f"constexpr int {name}_DEGREE = {len(polynomial) - 1};")
    print(f"constexpr float {name}[] = {{\n    {numbers}}};\n")


if __name__ == "__main__":
    main()
