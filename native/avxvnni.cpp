// x86-64 with AVX-VNNI: `vpdpbusd` in 256 bits.
#include "backend.h"
#include "encoder.h"
#include "products.h"
#include "vnni.h"

#ifndef EMULATED
#include <immintrin.h>
#endif

namespace {

struct AvxVnni : Unsigned, InRegisters<AvxVnni> {
#ifdef EMULATED
    typedef const int8_t* Weights;
    static INLINE Weights load_weights(const int8_t* from) { return from; }
    static INLINE Ints add_products(Ints sums, int32_t numbers, Weights weights) { return dot(sums, numbers, weights); }
#else
    struct Weights {
        __m256i low, high;
    };
    static INLINE Weights load_weights(const int8_t* from) {
        const __m256i* halves = (const __m256i*)from;
        return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
    }
    static INLINE Ints add_products(Ints sums, int32_t numbers, Weights weights) {
        __m256i halves[2], all = _mm256_set1_epi32(numbers);
        __builtin_memcpy(halves, &sums, sizeof halves);
        halves[0] = _mm256_dpbusd_avx_epi32(halves[0], all, weights.low);
        halves[1] = _mm256_dpbusd_avx_epi32(halves[1], all, weights.high);
        __builtin_memcpy(&sums, halves, sizeof halves);
        return sums;
    }
#endif
};

}  // namespace

BACKEND(avxvnni, AvxVnni)
