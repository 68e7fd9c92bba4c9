// arm64 with dot products: `sdot` in 128 bits, for signed numbers.
#include "backend.h"
#include "encoder.h"
#include "products.h"

#ifndef EMULATED
#include <arm_neon.h>
#endif

namespace {

struct Neon : InRegisters<Neon> {
    typedef int8_t Activation;
    static constexpr int GROUP = 4;

    static INLINE void store(Activation* to, Ints x) {
        Bytes bytes = __builtin_convertvector(x, Bytes);
        __builtin_memcpy(to, &bytes, sizeof bytes);
    }
    static INLINE Ints start(const int32_t*) { return Ints{}; }

#ifdef EMULATED
    typedef const int8_t* Weights;
    static INLINE Weights load_weights(const int8_t* from) { return from; }
    static INLINE Ints add_products(Ints sums, int32_t numbers, Weights weights) {
        Ints groups = load_as<Ints>(weights);
        for (int u = 0; u < 4; u++) sums += (groups << (24 - 8 * u) >> 24) * (int)(int8_t)(numbers >> 8 * u);
        return sums;
    }
#else
    struct Weights {
        int8x16_t quarters[4];
    };
    static INLINE Weights load_weights(const int8_t* from) {
        return {{vld1q_s8(from), vld1q_s8(from + 16), vld1q_s8(from + 32), vld1q_s8(from + 48)}};
    }
    static INLINE Ints add_products(Ints sums, int32_t numbers, Weights weights) {
        int32x4_t quarters[4];
        int8x16_t all = vreinterpretq_s8_s32(vdupq_n_s32(numbers));
        __builtin_memcpy(quarters, &sums, sizeof quarters);
        UNROLL for (int q = 0; q < 4; q++) quarters[q] = vdotq_s32(quarters[q], weights.quarters[q], all);
        __builtin_memcpy(&sums, quarters, sizeof quarters);
        return sums;
    }
#endif
};

}  // namespace

BACKEND(neon, Neon)
