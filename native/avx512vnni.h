// x86-64 with AVX512-VNNI: `vpdpbusd` in 512 bits, with twice the registers.
#pragma once

#include "encoder.h"
#include "products.h"
#include "vnni.h"

#ifndef EMULATED
#include <immintrin.h>
#endif

namespace {

struct Avx512Vnni : Unsigned, InRegisters<Avx512Vnni> {
    static constexpr int PANEL = 2, ROWS = 12;
    static constexpr int QUERY_ROWS = 3, KEY_ROWS = 8, VALUE_COLUMNS = 4;

#ifdef EMULATED
    typedef const int8_t* Weights;
    static INLINE Weights load_weights(const int8_t* from) { return from; }
    static INLINE Ints add_products(Ints sums, int32_t numbers, Weights weights) { return dot(sums, numbers, weights); }
#else
    typedef __m512i Weights;
    static INLINE Weights load_weights(const int8_t* from) { return _mm512_loadu_si512(from); }
    static INLINE Ints add_products(Ints sums, int32_t numbers, Weights weights) {
        return (Ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(numbers), weights);
    }
#endif
};

}  // namespace
