// Activations in 8 bits with 128 added, because VNNI multiplies unsigned numbers with signed ones; the
// products with what was added are taken off before the sum begins.
#pragma once

#include "model.h"

namespace {

struct Unsigned {
    typedef uint8_t Activation;
    static constexpr int GROUP = 4;

    static INLINE void store(Activation* to, Ints x) {
        typedef uint8_t Sixteen __attribute__((vector_size(16)));
        Sixteen bytes = __builtin_convertvector(x + 128, Sixteen);
        __builtin_memcpy(to, &bytes, sizeof bytes);
    }
    static INLINE Ints start(const int32_t* corrections) { return load(corrections); }
};

#ifdef EMULATED
// What the instruction computes, for tests on machines without it.
INLINE Ints dot(Ints sums, int32_t numbers, const int8_t* weights) {
    Ints groups = load_as<Ints>(weights);
    for (int u = 0; u < 4; u++) sums += (groups << (24 - 8 * u) >> 24) * (int)(uint8_t)(numbers >> 8 * u);
    return sums;
}
#endif

}  // namespace
