// Sixteen numbers at a time, on any CPU: the compiler makes one, two or four registers of each.
//
// Every operation is defined to the last bit: nothing here may be contracted, reordered or approximated
// (see the flags in build.py), and a sum of sixteen is always folded in the same tree.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

INLINE Floats all(float x) { return Floats{} + x; }
INLINE Ints all(int32_t x) { return Ints{} + x; }

template <class Vector, class Number>
INLINE Vector load_as(const Number* from) {
    Vector vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}
INLINE Floats load(const float* from) { return load_as<Floats>(from); }
INLINE Ints load(const int32_t* from) { return load_as<Ints>(from); }
INLINE Floats load(const int8_t* from) { return __builtin_convertvector(load_as<Bytes>(from), Floats); }
INLINE void store(float* to, Floats x) { __builtin_memcpy(to, &x, sizeof x); }

INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
INLINE Floats as_floats(Ints x) { return (Floats)x; }
INLINE Ints as_ints(Floats x) { return (Ints)x; }

// a * b + c, rounded once.
INLINE Floats fused(Floats a, Floats b, Floats c) {
#if __has_builtin(__builtin_elementwise_fma)
    return __builtin_elementwise_fma(a, b, c);
#else
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

// Where one number is NaN, both of these give the second.
INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
INLINE Floats size(Floats x) { return as_floats(as_ints(x) & 0x7fffffff); }

// Adding it leaves a number's integer part in the lowest bits, rounded to the nearest, to even from the
// middle; so it is for numbers of less than 2^22.
constexpr float ROUNDS = 12582912.0f;
INLINE Ints rounded(Floats x) { return as_ints(x + ROUNDS) - 0x4b400000; }

INLINE float sum(Floats x) {
    Eight a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    Four b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

INLINE float largest(Floats x) {
    Eight a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    Eight b = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    a = a > b ? a : b;
    Four c = __builtin_shufflevector(a, a, 0, 1, 2, 3);
    Four d = __builtin_shufflevector(a, a, 4, 5, 6, 7);
    c = c > d ? c : d;
    float e = c[0] > c[2] ? c[0] : c[2], f = c[1] > c[3] ? c[1] : c[3];
    return e > f ? e : f;
}
