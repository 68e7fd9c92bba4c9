// The library's interface in C: loads a model into memory that the caller owns, and runs texts through it.
//
// It allocates nothing, opens nothing and needs no other library. Every length and number that comes from
// outside is checked before it is used.
#include "backend.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
// So that what goes beyond a piece is found.
constexpr int BETWEEN_PIECES = 64;
#else
constexpr int BETWEEN_PIECES = 0;
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

extern const Backend backend_amx, backend_avx512vnni, backend_avxvnni, backend_avx2, backend_neon;

namespace {

// Those that are in this library, the fastest first. An emulated one has all of them.
const Backend* const BACKENDS[] = {
#if defined __x86_64__ || defined EMULATED
    &backend_amx, &backend_avx512vnni, &backend_avxvnni, &backend_avx2,
#endif
#if defined __aarch64__ || defined EMULATED
    &backend_neon,
#endif
};

enum Status { DONE = 0, NOT_FINITE = 1, BAD_ARGUMENT = -1, BAD_SHAPE = -2, BAD_TENSOR = -3, BAD_TEXT = -4 };

// Changes with whatever a caller must know of this file.
constexpr uint32_t VERSION = 1;
constexpr uint64_t LOADED = 0x656e636f64657231;

// Limits far above any model of the kind, so that no size below can overflow.
constexpr int MOST_LAYERS = 256, MOST_COLUMNS = 1 << 16, MOST_WORDS = 1 << 24, MOST_TOKENS = 1 << 16;

struct Tensor {
    const void* data;
    uint64_t bytes;
};

// The tensors that a model is loaded from, in this order: these, then those of each layer. Weights are
// [depth, columns], those of products int8, all else float.
enum { WORDS, WORD_SCALES, POSITIONS, NORM_SCALE, NORM_BIAS, BEFORE_WEIGHTS, BEFORE_BIASES, LABEL_WEIGHTS, LABEL_BIASES, OF_MODEL };
enum {
    QUERY_WEIGHTS, QUERY_SCALES, QUERY_BIASES, KEY_WEIGHTS, KEY_SCALES, VALUE_WEIGHTS, VALUE_SCALES,
    OUTPUT_WEIGHTS, OUTPUT_SCALES, OUTPUT_BIASES, ATTENTION_NORM_SCALE, ATTENTION_NORM_BIAS,
    FIRST_WEIGHTS, FIRST_SCALES, FIRST_BIASES, SECOND_WEIGHTS, SECOND_SCALES, OUTPUT_NORM_SCALE, OUTPUT_NORM_BIAS,
    OF_LAYER
};

struct Loaded {
    uint64_t loaded;
    const Backend* backend;
    Model model;
    Room room;
};

// Hands out memory piece by piece; without a beginning, it only adds up what is asked for.
struct Arena {
    char* begin;
    size_t used = 0;

    template <class T>
    T* take(size_t count) {
        char* piece = begin ? begin + used : nullptr;
        const size_t end = used + count * sizeof(T);
        used = (end + BETWEEN_PIECES + 63) / 64 * 64;
#ifdef __SANITIZE_ADDRESS__
        if (begin) __asan_poison_memory_region(begin + end, used - end);
#endif
        return (T*)piece;
    }
    Matrix matrix(int depth, int columns) {
        Matrix found{up_to(depth, DEPTH_STEP), columns, nullptr, nullptr, nullptr, nullptr};
        found.weights = take<int8_t>((size_t)found.depth * columns);
        found.scales = take<float>(columns);
        found.biases = take<float>(columns);
        found.corrections = take<int32_t>(columns);
        return found;
    }
};

bool is_valid(const Shape& s) {
    return s.layers >= 1 && s.layers <= MOST_LAYERS && s.dim >= LANES && s.dim <= MOST_COLUMNS && s.dim % LANES == 0 &&
           s.inner >= LANES && s.inner <= MOST_COLUMNS && s.inner % LANES == 0 && s.heads >= 1 && s.heads <= MOST_HEADS &&
           s.dim % s.heads == 0 && s.labels >= 1 && s.labels <= MOST_COLUMNS && s.words >= 1 && s.words <= MOST_WORDS &&
           s.positions >= 1 && s.positions <= MOST_TOKENS;
}

// Place all that a model needs. Returns how many bytes that is.
size_t place(Loaded* loaded, const Shape& shape, const Backend& backend) {
    Loaded none;
    Arena arena{(char*)loaded};
    arena.take<Loaded>(1);
    Loaded& to = loaded ? *loaded : none;
    Model& model = to.model;
    const int dim = shape.dim, inner = shape.inner, labels = up_to(shape.labels, LANES);
    model.shape = shape;
    model.words = arena.take<int8_t>((size_t)shape.words * dim);
    model.word_scales = arena.take<float>(shape.words);
    model.positions = arena.take<float>((size_t)shape.positions * dim);
    model.norm_scale = arena.take<float>(dim);
    model.norm_bias = arena.take<float>(dim);
    model.before_weights = arena.take<float>((size_t)dim * dim);
    model.before_biases = arena.take<float>(dim);
    model.label_weights = arena.take<float>((size_t)dim * labels);
    model.label_biases = arena.take<float>(labels);
    model.layers = arena.take<Layer>(shape.layers);
    for (int l = 0; l < shape.layers; l++) {
        Layer layer;
        layer.query = arena.matrix(dim, dim);
        layer.key_value = arena.matrix(dim, 2 * dim);
        layer.output = arena.matrix(dim, dim);
        layer.first = arena.matrix(dim, inner);
        layer.second = arena.matrix(inner, dim);
        layer.attention_norm_scale = arena.take<float>(dim);
        layer.attention_norm_bias = arena.take<float>(dim);
        layer.output_norm_scale = arena.take<float>(dim);
        layer.output_norm_bias = arena.take<float>(dim);
        if (loaded) model.layers[l] = layer;
    }
    Room& room = to.room;
    const size_t tokens = TOKENS_AT_ONCE > shape.positions ? TOKENS_AT_ONCE : shape.positions;
    const size_t of_text = ROWS_AT_ONCE > shape.positions ? ROWS_AT_ONCE : shape.positions;
    const size_t activation = backend.activation_bytes;
    const size_t padded_dim = up_to(dim, DEPTH_STEP), padded_inner = up_to(inner, DEPTH_STEP);
    const size_t widest = inner > dim ? inner : dim;
    room.hidden = arena.take<float>(tokens * dim);
    room.scales = arena.take<float>(tokens);
    room.quantized = arena.take<char>((tokens + SPARE_ROWS) * padded_dim * activation);
    room.attended = arena.take<char>((tokens + SPARE_ROWS) * padded_dim * activation);
    room.attended_scales = arena.take<float>(tokens);
    room.queries = arena.take<float>(of_text * (dim + LANES) + ROWS_AT_ONCE * labels);
    room.keys_values = arena.take<float>(of_text * (2 * dim + LANES));
    room.scores = arena.take<float>(MOST_QUERY_ROWS * shape.positions * LANES);
    room.context = arena.take<float>(MOST_QUERY_ROWS * (dim + LANES));
    room.wide = arena.take<float>(ROWS_AT_ONCE * widest);
    room.row_largest = arena.take<float>(ROWS_AT_ONCE * LANES);
    room.row_scales = arena.take<float>(ROWS_AT_ONCE);
    room.middle = arena.take<char>((ROWS_AT_ONCE + SPARE_ROWS) * padded_dim * activation);
    room.activated = arena.take<char>((ROWS_AT_ONCE + SPARE_ROWS) * padded_inner * activation);
    return arena.used;
}

const Backend* backend_of(const char* name) {
    for (const Backend* backend : BACKENDS)
        if (name && !__builtin_strcmp(backend->name, name)) return backend;
    return nullptr;
}

// Heads side by side: number d of head h moves from column h * (dim / heads) + d to d * heads + h.
int from_head(const Shape& shape, int column) {
    return column % shape.heads * (shape.dim / shape.heads) + column / shape.heads;
}

struct Loader {
    const Backend& backend;
    const Shape& shape;
    const Tensor* next;
    bool fits = true;

    template <class T>
    const T* take(size_t count) {
        const Tensor& tensor = *next++;
        fits = fits && tensor.data && tensor.bytes == count * sizeof(T);
        return (const T*)tensor.data;
    }
    template <class T>
    void copy(T* to, size_t count) {
        const T* from = take<T>(count);
        if (fits) __builtin_memcpy(to, from, count * sizeof(T));
    }
    void copy_columns(float* to, int rows, int columns) {
        const float* from = take<float>((size_t)rows * columns);
        const int padded = up_to(columns, LANES);
        if (fits)
            for (int r = 0; r < rows; r++) __builtin_memcpy(to + (size_t)r * padded, from + (size_t)r * columns, columns * sizeof(float));
    }

    // Pack weights [depth, columns] as columns of a matrix, `first` and following.
    void pack(Matrix& matrix, int depth, int first, int columns, bool heads_in, bool heads_out, float factor, bool biased) {
        const int8_t* weights = take<int8_t>((size_t)depth * columns);
        const float* scales = take<float>(columns);
        const float* biases = biased ? take<float>(columns) : nullptr;
        if (!fits) return;
        for (int c = 0; c < columns; c++) {
            const int from = heads_out ? from_head(shape, c) : c, to = first + c;
            matrix.scales[to] = scales[from] * factor;
            matrix.biases[to] = biased ? biases[from] * factor : 0.0f;
            matrix.corrections[to] = -128 * pack_column(matrix, to, weights + from, depth, columns, heads_in);
        }
    }

    // Returns the sum of the weights of the column.
    int32_t pack_column(Matrix& matrix, int column, const int8_t* weights, int depth, int stride, bool heads_in) {
        // What is left behind the last whole panel stands in panels of one vector.
        const int wide = backend.panel * LANES;
        const int width = column < matrix.columns / wide * wide ? wide : LANES;
        int8_t* to = matrix.weights + (size_t)(column / width * width) * matrix.depth + column % width * backend.group;
        int32_t total = 0;
        for (int k = 0; k < depth; k += backend.group, to += width * backend.group)
            for (int u = 0; u < backend.group; u++) {
                to[u] = weights[(size_t)(heads_in ? from_head(shape, k + u) : k + u) * stride];
                total += to[u];
            }
        return total;
    }
};

bool load(Loaded& loaded, const float* fixed, const Tensor* tensors) {
    Model& model = loaded.model;
    const Shape& shape = model.shape;
    const int dim = shape.dim, inner = shape.inner;
    Loader from{*loaded.backend, shape, tensors};
    from.copy(model.words, (size_t)shape.words * dim);
    from.copy(model.word_scales, shape.words);
    from.copy(model.positions, (size_t)shape.positions * dim);
    from.copy(model.norm_scale, dim);
    from.copy(model.norm_bias, dim);
    from.copy(model.before_weights, (size_t)dim * dim);
    from.copy(model.before_biases, dim);
    from.copy_columns(model.label_weights, dim, shape.labels);
    from.copy(model.label_biases, shape.labels);
    // Scores come in powers of two, divided by the square root of a head's width.
    const float log2_of_e = 1.4426950408889634f;
    const float of_scores = log2_of_e / __builtin_sqrtf((float)(dim / shape.heads));
    for (int l = 0; l < shape.layers; l++) {
        Layer& layer = model.layers[l];
        from.pack(layer.query, dim, 0, dim, false, true, of_scores, true);
        from.pack(layer.key_value, dim, 0, dim, false, true, 1, false);
        from.pack(layer.key_value, dim, dim, dim, false, true, 1, false);
        from.pack(layer.output, dim, 0, dim, true, false, 1, true);
        from.copy(layer.attention_norm_scale, dim);
        from.copy(layer.attention_norm_bias, dim);
        from.pack(layer.first, dim, 0, inner, false, false, 1, true);
        from.pack(layer.second, inner, 0, dim, false, false, 1, false);
        from.copy(layer.output_norm_scale, dim);
        from.copy(layer.output_norm_bias, dim);
        layer.attention_scale = fixed[2 * l];
        layer.feed_forward_scale = fixed[2 * l + 1];
    }
    return from.fits;
}

// The processor's state of floating point, as every run has it: rounding to the nearest, nothing flushed.
struct Exactly {
#ifdef __x86_64__
    const unsigned before = _mm_getcsr();
    Exactly() { _mm_setcsr(0x1f80); }
    ~Exactly() { _mm_setcsr(before); }
#else
    uint64_t before;
    Exactly() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before));
        __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
    }
    ~Exactly() { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
#endif
};

}  // namespace

EXPORT uint32_t encoder_version() { return VERSION; }

// Return the name of a backend, or null where there are no more.
EXPORT const char* encoder_backend(uint32_t index) {
    return index < sizeof BACKENDS / sizeof *BACKENDS ? BACKENDS[index]->name : nullptr;
}

// Return how many bytes a model takes, 0 where a backend has no such name or the shape cannot be run.
EXPORT uint64_t encoder_bytes(const Shape* shape, const char* backend) {
    const Backend* found = backend_of(backend);
    return shape && found && is_valid(*shape) ? place(nullptr, *shape, *found) : 0;
}

// Load a model into memory that is zero, begins at a multiple of 64, and has as many bytes as
// `encoder_bytes` says. `fixed` has two scales for each layer; `tensors` come in the order above.
EXPORT int encoder_load(void* memory, uint64_t bytes, const Shape* shape, const char* backend, float epsilon,
                        const float* fixed, uint64_t fixed_count, const Tensor* tensors, uint64_t tensor_count) {
    const Backend* found = backend_of(backend);
    if (!memory || (uintptr_t)memory % 64 || !shape || !found || !fixed || !tensors) return BAD_ARGUMENT;
    if (!is_valid(*shape) || bytes < place(nullptr, *shape, *found)) return BAD_SHAPE;
    const uint64_t layers = shape->layers;
    if (fixed_count != 2 * layers || tensor_count != OF_MODEL + layers * OF_LAYER) return BAD_TENSOR;
    Loaded& loaded = *(Loaded*)memory;
    loaded.backend = found;
    place(&loaded, *shape, *found);
    loaded.model.epsilon = epsilon;
    if (!load(loaded, fixed, tensors)) return BAD_TENSOR;
    loaded.loaded = LOADED;
    return DONE;
}

// Run texts, whose ids stand one after another, and write their logits, [texts, labels].
EXPORT int encoder_run(void* memory, const int32_t* ids, uint64_t id_count, const int32_t* lengths, uint64_t texts,
                       float* logits, uint64_t logit_count) {
    Loaded* loaded = (Loaded*)memory;
    if (!loaded || loaded->loaded != LOADED || !ids || !lengths || !logits) return BAD_ARGUMENT;
    const Shape& shape = loaded->model.shape;
    if (texts > INT32_MAX || id_count > INT32_MAX || logit_count != texts * shape.labels) return BAD_ARGUMENT;
    uint64_t tokens = 0;
    for (uint64_t t = 0; t < texts; t++) {
        if (lengths[t] < 1 || lengths[t] > shape.positions) return BAD_TEXT;
        tokens += lengths[t];
    }
    if (tokens != id_count) return BAD_TEXT;
    for (uint64_t k = 0; k < id_count; k++)
        if (ids[k] < 0 || ids[k] >= shape.words) return BAD_TEXT;
    const Exactly exactly;
    bool finite = true;
    for (uint64_t first = 0; first < texts;) {
        const WholeTexts block(lengths + first, (int)(texts - first), TOKENS_AT_ONCE);
        finite &= loaded->backend->run(loaded->model, loaded->room, ids, lengths + first, block.texts, logits + first * shape.labels);
        ids += block.tokens;
        first += block.texts;
    }
    return finite ? DONE : NOT_FINITE;
}
