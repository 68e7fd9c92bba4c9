// What a model consists of once its weights are packed, and the room that a run works in.
#pragma once

#include "vectors.h"

// Texts go through the layers together, so many tokens at most, or one text alone if it has more.
constexpr int TOKENS_AT_ONCE = 512;
// Rows that go from one product to the next together, while what they become is still in the cache.
constexpr int ROWS_AT_ONCE = 64;
// Activations are read to the end of a tile, beyond the last row.
constexpr int SPARE_ROWS = 31;
// All products are over a multiple of this: zeros fill up what a model has less.
constexpr int DEPTH_STEP = 64;
constexpr int MOST_HEADS = LANES;
// Rows of queries that any backend works on at once.
constexpr int MOST_QUERY_ROWS = 8;

INLINE int up_to(int number, int step) { return (number + step - 1) / step * step; }

// The first of some texts, as many as have so many tokens together, but one at least.
struct WholeTexts {
    int texts = 0, tokens = 0;
    INLINE WholeTexts(const int32_t* lengths, int left, int most) {
        do tokens += lengths[texts++];
        while (texts < left && tokens + lengths[texts] <= most);
    }
};

struct Shape {
    int32_t layers, dim, inner, heads, labels, words, positions;
};

// int8 weights [depth, columns] as a backend has packed them; the product of a row is to be multiplied by
// the row's scale and the columns' scales, then the biases are added.
struct Matrix {
    int depth, columns;
    int8_t* weights;
    float* scales;
    float* biases;
    // What a row begins with where activations are stored with 128 added.
    int32_t* corrections;
};

struct Layer {
    Matrix query, key_value, output, first, second;
    float *attention_norm_scale, *attention_norm_bias, *output_norm_scale, *output_norm_bias;
    // The scales of activations before attention and before the feed-forward; 0: each row has its own.
    float attention_scale, feed_forward_scale;
};

struct Model {
    Shape shape;
    float epsilon;
    int8_t* words;
    float *word_scales, *positions, *norm_scale, *norm_bias;
    Layer* layers;
    float *before_weights, *before_biases, *label_weights, *label_biases;
};

struct Room {
    // Tokens: the numbers themselves, what they are quantized to, and its scales.
    float *hidden, *scales;
    void *quantized, *attended;
    float *attended_scales;
    // Rows that are at work.
    float *queries, *keys_values, *scores, *context, *wide, *row_largest, *row_scales;
    void *middle, *activated;
    // What is not finite leaves NaN here.
    Floats poison;
};
