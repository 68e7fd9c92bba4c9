// x86-64 with AVX2 and FMA: activations and weights in 16 bits, of which `vpmaddwd` adds up two products.
#include "backend.h"
#include "encoder.h"
#include "products.h"

#ifndef EMULATED
#include <immintrin.h>
#endif

namespace {

struct Avx2 : InRegisters<Avx2> {
    typedef int16_t Activation;
    static constexpr int GROUP = 2;

    static INLINE void store(Activation* to, Ints x) {
        Shorts shorts = __builtin_convertvector(x, Shorts);
        __builtin_memcpy(to, &shorts, sizeof shorts);
    }
    static INLINE Ints start(const int32_t*) { return Ints{}; }

#ifdef EMULATED
    typedef const int8_t* Weights;
    static INLINE Weights load_weights(const int8_t* from) { return from; }
    static INLINE Ints add_products(Ints sums, int32_t numbers, Weights weights) {
        Ints pairs = __builtin_convertvector(load_as<Shorts>(weights), Ints);
        for (int u = 0; u < 2; u++) sums += (pairs << (24 - 8 * u) >> 24) * (int)(int16_t)(numbers >> 16 * u);
        return sums;
    }
#else
    struct Weights {
        __m256i low, high;
    };
    static INLINE Weights load_weights(const int8_t* from) {
        const __m128i* halves = (const __m128i*)from;
        return {_mm256_cvtepi8_epi16(_mm_loadu_si128(halves)), _mm256_cvtepi8_epi16(_mm_loadu_si128(halves + 1))};
    }
    static INLINE Ints add_products(Ints sums, int32_t numbers, Weights weights) {
        __m256i halves[2], both = _mm256_set1_epi32(numbers);
        __builtin_memcpy(halves, &sums, sizeof halves);
        halves[0] = _mm256_add_epi32(halves[0], _mm256_madd_epi16(both, weights.low));
        halves[1] = _mm256_add_epi32(halves[1], _mm256_madd_epi16(both, weights.high));
        __builtin_memcpy(&sums, halves, sizeof halves);
        return sums;
    }
#endif
};

}  // namespace

BACKEND(avx2, Avx2)
