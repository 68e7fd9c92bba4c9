// The forward pass of a DistilBERT classifier: what is computed, in which order, to the last bit.
//
// A backend `B` supplies the int8 product and how activations are stored for it; the product is exact, so all
// backends give the same bits. What happens to a row never depends on the rows beside it. The functions
// are written out in each backend's own source file, for its own instructions.
#pragma once

#include "model.h"
#include "polynomials.h"

namespace {

// Where a row's scale or a product's is multiplied in: the largest int8 stands for the largest number.
constexpr float INT8_LARGEST = 127.0f;
// GELU's minimum is -0.16997, at x = -0.7518 (Hendrycks and Gimpel, 2016); it becomes -128 at the least.
constexpr float GELU_SMALLEST_SCALE = 0.17f / 128.0f;
// Below, a power of two would not count beside the largest, which is 1.
constexpr float SMALLEST_EXPONENT = -80.0f;

template <int DEGREE>
INLINE Floats polynomial(const float (&coefficients)[DEGREE + 1], Floats x) {
    Floats result = all(coefficients[DEGREE]);
    UNROLL for (int k = DEGREE - 1; k >= 0; k--) result = fused(result, x, all(coefficients[k]));
    return result;
}

// x times the normal distribution's cdf: z P(z^2) is the cdf less one half, for z between the clamps.
INLINE Floats gelu(Floats x) {
    Floats z = larger(smaller(x, all(GELU_CLAMP)), all(-GELU_CLAMP));
    Floats u = fused(z * z, all(GELU_SCALE), all(-1.0f));
    return x * fused(z, polynomial<GELU_DEGREE>(GELU, u), all(0.5f));
}

// 2^x for x up to 0: a polynomial for what is left of x after rounding, which goes into the exponent.
INLINE Floats power_of_two(Floats x) {
    x = larger(x, all(SMALLEST_EXPONENT));
    Floats shifted = x + ROUNDS;
    Floats rest = x - (shifted - ROUNDS);
    return as_floats(as_ints(polynomial<EXP2_DEGREE>(EXP2, rest)) + (as_ints(shifted) << 23));
}

// NaN where any of the numbers was not finite, else 0 or -0.
INLINE void check(Floats& poison, Floats x) { poison = fused(x, Floats{}, poison); }

INLINE float scale_for(float largest) { return largest * (1.0f / INT8_LARGEST); }
INLINE float inverse(float scale) { return scale > 0 ? 1.0f / scale : 0.0f; }

template <class B>
INLINE void quantize(const float* from, int columns, float scale, typename B::Activation* to) {
    Floats factor = all(inverse(scale));
    for (int c = 0; c < columns; c += LANES) {
        Floats x = load(from + c) * factor;
        // A fixed scale may be too small for some number.
        x = smaller(larger(x, all(-128.0f)), all(127.0f));
        B::store(to + c, rounded(x));
    }
}

INLINE float largest_size(const float* from, int columns) {
    Floats found = {};
    for (int c = 0; c < columns; c += LANES) found = larger(size(load(from + c)), found);
    return largest(found);
}

// What becomes of the integer sums of a product: (sum * column's scale) * row's scale + bias, then GELU if
// asked for. With GELU, the largest of each row is kept, lane by lane.
template <bool GELU_FOLLOWS>
struct Epilogue {
    float* out;
    size_t stride;
    const Matrix& matrix;
    const float* row_scales;
    float* row_largest;
    Floats& poison;

    template <int VECTORS>
    INLINE void put(int row, int column, const Ints (&sums)[VECTORS]) const {
        Floats scale = all(row_scales[row]);
        float* to = out + row * stride + column;
        Floats found = GELU_FOLLOWS ? load(row_largest + row * LANES) : Floats{};
        UNROLL for (int v = 0; v < VECTORS; v++) {
            int c = column + v * LANES;
            Floats x = to_floats(sums[v]) * load(matrix.scales + c);
            x = fused(x, scale, load(matrix.biases + c));
            check(poison, x);
            if (GELU_FOLLOWS) {
                x = gelu(x);
                found = larger(x, found);
            }
            store(to + v * LANES, x);
        }
        if (GELU_FOLLOWS) store(row_largest + row * LANES, found);
    }
};

template <class B>
struct Encoder {
    typedef typename B::Activation Activation;

    const Model& model;
    Room& room;
    const int dim = model.shape.dim, inner = model.shape.inner, heads = model.shape.heads;
    const int head_dim = dim / heads;
    const size_t stride = up_to(dim, DEPTH_STEP), wide_stride = up_to(inner, DEPTH_STEP);
    // Heads stand side by side in the lanes, so the last ones are read, and written, beyond a row's end.
    const size_t queries_stride = dim + LANES, context_stride = dim + LANES;
    const size_t keys_values_stride = 2 * dim + LANES;

    Activation* quantized(int row) { return (Activation*)room.quantized + row * stride; }
    Activation* attended(int row) { return (Activation*)room.attended + row * stride; }
    Activation* middle(int row) { return (Activation*)room.middle + row * stride; }
    Activation* activated(int row) { return (Activation*)room.activated + row * wide_stride; }
    float* hidden(int row) { return room.hidden + (size_t)row * dim; }

    void run(const int32_t* ids, const int32_t* lengths, int texts, float* logits) {
        embed(ids, lengths, texts);
        int tokens = 0;
        for (int t = 0; t < texts; t++) tokens += lengths[t];
        const int last = model.shape.layers - 1;
        for (int l = 0; l < last; l++) {
            attend_over(model.layers[l], lengths, texts, tokens);
            feed_forward(model.layers[l], tokens, model.layers[l + 1].attention_scale);
        }
        attend_with_first_tokens(model.layers[last], lengths, texts, tokens);
        feed_forward(model.layers[last], texts, 0);
        classify(texts, logits);
    }

    void embed(const int32_t* ids, const int32_t* lengths, int texts) {
        int row = 0;
        for (int t = 0; t < texts; t++)
            for (int p = 0; p < lengths[t]; p++, row++) {
                const int8_t* word = model.words + (size_t)ids[row] * dim;
                const float* position = model.positions + (size_t)p * dim;
                Floats scale = all(model.word_scales[ids[row]]);
                for (int c = 0; c < dim; c += LANES)
                    store(room.wide + c, load(word + c) * scale + load(position + c));
                normalize(room.wide, nullptr, model.norm_scale, model.norm_bias, hidden(row));
                room.scales[row] = quantize_row(hidden(row), model.layers[0].attention_scale, quantized(row));
            }
    }

    // Store the numbers of a row for a product, by its own scale where none is fixed; returns the scale.
    INLINE float quantize_row(const float* from, float fixed, Activation* to) {
        float scale = fixed > 0 ? fixed : scale_for(largest_size(from, dim));
        quantize<B>(from, dim, scale, to);
        return scale;
    }

    // LayerNormalization of x, or of x + residual. Sums go into four times sixteen lanes in turn.
    INLINE void normalize(float* x, const float* residual, const float* scale, const float* bias, float* out) {
        Floats sums[4] = {}, squares[4] = {};
        for (int c = 0; c < dim; c += 4 * LANES)
            UNROLL for (int k = 0; k < 4; k++) {
                int column = c + k * LANES;
                if (column >= dim) break;
                Floats value = load(x + column);
                if (residual) value += load(residual + column);
                store(x + column, value);
                sums[k] += value;
            }
        float mean = sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / dim;
        for (int c = 0; c < dim; c += 4 * LANES)
            UNROLL for (int k = 0; k < 4; k++) {
                int column = c + k * LANES;
                if (column >= dim) break;
                Floats value = load(x + column) - mean;
                squares[k] = fused(value, value, squares[k]);
            }
        float variance = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / dim;
        check(room.poison, all(variance));
        Floats factor = all(1.0f / __builtin_sqrtf(variance + model.epsilon));
        for (int c = 0; c < dim; c += LANES)
            store(out + c, fused((load(x + c) - mean) * factor, load(scale + c), load(bias + c)));
    }

    template <bool GELU_FOLLOWS = false>
    void multiply(const Activation* rows, size_t rows_stride, int count, const Matrix& matrix,
                  const float* row_scales, float* out, size_t out_stride) {
        Epilogue<GELU_FOLLOWS> epilogue{out, out_stride, matrix, row_scales, room.row_largest, room.poison};
        B::multiply(rows, rows_stride, count, matrix, epilogue);
    }

    void attend_over(const Layer& layer, const int32_t* lengths, int texts, int tokens) {
        int first = 0, text = 0;
        while (first < tokens) {
            const WholeTexts block(lengths + text, texts - text, ROWS_AT_ONCE);
            const int rows = block.tokens, end = text + block.texts;
            project(layer.query, first, rows, room.queries, queries_stride);
            project(layer.key_value, first, rows, room.keys_values, keys_values_stride);
            for (int row = 0; text < end; row += lengths[text++])
                attend(row, lengths[text], row, lengths[text], first + row);
            first += rows;
        }
    }

    // In the last layer only the first token of each text, which the head reads, goes on.
    void attend_with_first_tokens(const Layer& layer, const int32_t* lengths, int texts, int tokens) {
        int first = 0, text = 0;
        while (first < tokens) {
            const WholeTexts block(lengths + text, texts - text, ROWS_AT_ONCE);
            const int rows = block.tokens, end = text + block.texts;
            project(layer.key_value, first, rows, room.keys_values, keys_values_stride);
            int begin = text;
            for (int row = 0; text < end; row += lengths[text++]) {
                // `attended` is not in use before row `text`, and hidden rows only move down.
                copy_row(first + row, text);
            }
            project(layer.query, begin, end - begin, room.queries, queries_stride);
            text = begin;
            for (int row = 0; text < end; row += lengths[text++])
                attend(text - begin, 1, row, lengths[text], text);
            first += rows;
        }
    }

    INLINE void copy_row(int from, int to) {
        if (from == to) return;
        __builtin_memcpy(hidden(to), hidden(from), dim * sizeof(float));
        __builtin_memcpy(quantized(to), quantized(from), dim * sizeof(Activation));
        room.scales[to] = room.scales[from];
    }

    INLINE void project(const Matrix& matrix, int first, int rows, float* out, size_t out_stride) {
        multiply(quantized(first), stride, rows, matrix, room.scales + first, out, out_stride);
    }

    // Attention of some rows of queries over the keys and values of one text, all heads at once: number d
    // of head h is in column d * heads + h. Becomes rows of `attended`.
    void attend(int query, int queries, int key, int length, int attended_row) {
        const float* keys = room.keys_values + key * keys_values_stride;
        for (int done = 0; done < queries;) {
            int rows = queries - done;
            if (rows > B::QUERY_ROWS) rows = rows < 2 * B::QUERY_ROWS ? (rows + 1) / 2 : B::QUERY_ROWS;
            attend_rows<B::QUERY_ROWS>(rows, room.queries + (query + done) * queries_stride, keys, length);
            for (int r = 0; r < rows; r++) {
                int row = attended_row + done + r;
                room.attended_scales[row] = quantize_row(room.context + r * context_stride, 0, attended(row));
            }
            done += rows;
        }
    }

    template <int ROWS>
    INLINE void attend_rows(int rows, const float* queries, const float* keys, int length) {
        if constexpr (ROWS > 1) {
            if (rows < ROWS) return attend_rows<ROWS - 1>(rows, queries, keys, length);
        }
        score<ROWS>(queries, keys, length);
        Floats factors[ROWS];
        for (int r = 0; r < ROWS; r++) factors[r] = 1.0f / softmax(room.scores + r * length * LANES, length);
        weigh<ROWS>(keys + dim, length, factors);
    }

    template <int ROWS>
    INLINE void score(const float* queries, const float* keys, int length) {
        int j = 0;
        for (; j + B::KEY_ROWS <= length; j += B::KEY_ROWS)
            score_block<ROWS, B::KEY_ROWS>(queries, keys, j, length);
        for (; j < length; j++) score_block<ROWS, 1>(queries, keys, j, length);
    }

    template <int ROWS, int KEYS>
    INLINE void score_block(const float* queries, const float* keys, int j, int length) {
        Floats products[ROWS][KEYS] = {};
        keys += j * keys_values_stride;
        for (int d = 0; d < head_dim; d++) {
            Floats query[ROWS];
            UNROLL for (int r = 0; r < ROWS; r++) query[r] = load(queries + r * queries_stride + d * heads);
            UNROLL for (int k = 0; k < KEYS; k++) {
                Floats key = load(keys + k * keys_values_stride + d * heads);
                UNROLL for (int r = 0; r < ROWS; r++) products[r][k] = fused(query[r], key, products[r][k]);
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int k = 0; k < KEYS; k++)
                store(room.scores + (r * length + j + k) * LANES, products[r][k]);
    }

    // Turn scores, in powers of two, into weights that are yet to be divided by the sum that is returned.
    INLINE Floats softmax(float* scores, int length) {
        Floats top = load(scores), found = {};
        for (int j = 0; j < length; j++) {
            Floats score = load(scores + j * LANES);
            top = larger(score, top);
            check(found, score);
        }
        // Lanes of no head hold what is of no account.
        Ints of_heads = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} < heads;
        room.poison += as_floats(as_ints(found) & of_heads);
        Floats total = {};
        for (int j = 0; j < length; j++) {
            Floats weight = power_of_two(load(scores + j * LANES) - top);
            store(scores + j * LANES, weight);
            total += weight;
        }
        return total;
    }

    template <int ROWS>
    INLINE void weigh(const float* values, int length, const Floats (&factors)[ROWS]) {
        int d = 0;
        for (; d + B::VALUE_COLUMNS <= head_dim; d += B::VALUE_COLUMNS)
            weigh_block<ROWS, B::VALUE_COLUMNS>(values, d, length, factors);
        for (; d < head_dim; d++) weigh_block<ROWS, 1>(values, d, length, factors);
    }

    template <int ROWS, int COLUMNS>
    INLINE void weigh_block(const float* values, int d, int length, const Floats (&factors)[ROWS]) {
        Floats sums[ROWS][COLUMNS] = {};
        for (int j = 0; j < length; j++) {
            Floats weight[ROWS];
            UNROLL for (int r = 0; r < ROWS; r++) weight[r] = load(room.scores + (r * length + j) * LANES);
            UNROLL for (int k = 0; k < COLUMNS; k++) {
                Floats value = load(values + j * keys_values_stride + (d + k) * heads);
                UNROLL for (int r = 0; r < ROWS; r++) sums[r][k] = fused(weight[r], value, sums[r][k]);
            }
        }
        // In this order: what is written beyond a column's heads is overwritten by the next.
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int k = 0; k < COLUMNS; k++)
                store(room.context + r * context_stride + (d + k) * heads, sums[r][k] * factors[r]);
    }

    // The rest of a layer: the output projection, then the two products of the feed-forward.
    void feed_forward(const Layer& layer, int rows, float next_scale) {
        for (int first = 0; first < rows; first += ROWS_AT_ONCE) {
            int count = rows - first < ROWS_AT_ONCE ? rows - first : ROWS_AT_ONCE;
            multiply(attended(first), stride, count, layer.output, room.attended_scales + first, room.wide, dim);
            for (int r = 0; r < count; r++) {
                float* row = hidden(first + r);
                normalize(room.wide + (size_t)r * dim, row, layer.attention_norm_scale, layer.attention_norm_bias, row);
                room.row_scales[r] = quantize_row(row, layer.feed_forward_scale, middle(r));
                store(room.row_largest + r * LANES, Floats{});
            }
            multiply<true>(middle(0), stride, count, layer.first, room.row_scales, room.wide, inner);
            for (int r = 0; r < count; r++) {
                float scale = scale_for(largest(load(room.row_largest + r * LANES)));
                scale = scale > GELU_SMALLEST_SCALE ? scale : GELU_SMALLEST_SCALE;
                room.row_scales[r] = scale;
                quantize<B>(room.wide + (size_t)r * inner, inner, scale, activated(r));
            }
            multiply(activated(0), wide_stride, count, layer.second, room.row_scales, room.wide, dim);
            for (int r = 0; r < count; r++) {
                float* row = hidden(first + r);
                normalize(room.wide + (size_t)r * dim, row, layer.output_norm_scale, layer.output_norm_bias, row);
                room.scales[first + r] = quantize_row(row, next_scale, quantized(first + r));
            }
        }
    }

    // The head, in floats, since it is little work and nearest to the decision.
    void classify(int texts, float* logits) {
        const int labels = model.shape.labels, columns = up_to(labels, LANES);
        for (int first = 0; first < texts; first += ROWS_AT_ONCE) {
            int count = texts - first < ROWS_AT_ONCE ? texts - first : ROWS_AT_ONCE;
            dense(hidden(first), count, dim, model.before_weights, model.before_biases, room.wide);
            for (int c = 0; c < count * dim; c += LANES) {
                Floats x = load(room.wide + c);
                // Not `larger`, which hides NaN.
                store(room.wide + c, x < 0 ? Floats{} : x);
            }
            dense(room.wide, count, columns, model.label_weights, model.label_biases, room.queries);
            for (int r = 0; r < count; r++)
                __builtin_memcpy(logits + (size_t)(first + r) * labels, room.queries + r * columns, labels * sizeof(float));
        }
    }

    INLINE void dense(const float* x, int rows, int columns, const float* weights, const float* biases, float* out) {
        int r = 0;
        for (; r + B::QUERY_ROWS <= rows; r += B::QUERY_ROWS)
            dense_rows<B::QUERY_ROWS>(x + r * dim, columns, weights, biases, out + r * columns);
        for (; r < rows; r++) dense_rows<1>(x + r * dim, columns, weights, biases, out + r * columns);
    }

    template <int ROWS>
    INLINE void dense_rows(const float* x, int columns, const float* weights, const float* biases, float* out) {
        int c = 0;
        for (; c + B::KEY_ROWS * LANES <= columns; c += B::KEY_ROWS * LANES)
            dense_block<ROWS, B::KEY_ROWS>(x, columns, c, weights, biases, out);
        for (; c < columns; c += LANES) dense_block<ROWS, 1>(x, columns, c, weights, biases, out);
    }

    template <int ROWS, int VECTORS>
    INLINE void dense_block(const float* x, int columns, int c, const float* weights, const float* biases, float* out) {
        Floats sums[ROWS][VECTORS] = {};
        for (int k = 0; k < dim; k++) {
            Floats weight[VECTORS];
            UNROLL for (int v = 0; v < VECTORS; v++) weight[v] = load(weights + (size_t)k * columns + c + v * LANES);
            UNROLL for (int r = 0; r < ROWS; r++)
                UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] = fused(all(x[r * dim + k]), weight[v], sums[r][v]);
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int v = 0; v < VECTORS; v++)
                store(out + r * columns + c + v * LANES, sums[r][v] + load(biases + c + v * LANES));
    }
};

}  // namespace
