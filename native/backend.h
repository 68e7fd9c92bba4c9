// What each source file of a backend gives to the rest.
#pragma once

#include "model.h"

struct Backend {
    const char* name;
    // How weights are packed: see products.h.
    int group, panel;
    size_t activation_bytes;
    // Returns whether all numbers stayed finite.
    bool (*run)(const Model&, Room&, const int32_t* ids, const int32_t* lengths, int texts, float* logits);
};

#define BACKEND(name, B)                                                                                      \
    static bool run_##name(const Model& model, Room& room, const int32_t* ids, const int32_t* lengths, int texts, \
                           float* logits) {                                                                   \
        room.poison = Floats{};                                                                               \
        Encoder<B>{model, room}.run(ids, lengths, texts, logits);                                             \
        return sum(room.poison) == 0;                                                                         \
    }                                                                                                         \
    extern const Backend backend_##name = {#name, B::GROUP, B::PANEL, sizeof(B::Activation), run_##name};
