// Gives the library models of random shapes, texts of random lengths, and arguments that are wrong.
//
//     fuzz SECONDS SEED
//
// Built with the backends emulated, under the address and undefined-behaviour sanitizers: see build.py. Each
// round, all backends must give the same bytes, alone and in a batch, and what is wrong must be refused. With 0
// seconds it runs one model, whose logits have the same digest on every machine.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <memory>
#include <random>
#include <vector>

struct Shape {
    int32_t layers, dim, inner, heads, labels, words, positions;
};
struct Tensor {
    const void* data;
    uint64_t bytes;
};
extern "C" {
const char* encoder_backend(uint32_t);
uint64_t encoder_bytes(const Shape*, const char*);
int encoder_load(void*, uint64_t, const Shape*, const char*, float, const float*, uint64_t, const Tensor*, uint64_t);
int encoder_run(void*, const int32_t*, uint64_t, const int32_t*, uint64_t, float*, uint64_t);
}

static std::mt19937_64 generator;
static int between(int least, int most) { return least + (int)(generator() % (uint64_t)(most - least + 1)); }
static float number(float least, float most) { return least + (most - least) * (float)(generator() % 65536) / 65535.0f; }

static void require(bool holds, const char* what) {
    if (holds) return;
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

struct Memory {
    void* begin;
    uint64_t bytes;
    explicit Memory(uint64_t size) : begin(aligned_alloc(64, size)), bytes(size) { memset(begin, 0, size); }
    Memory(Memory&& other) : begin(other.begin), bytes(other.bytes) { other.begin = nullptr; }
    ~Memory() { free(begin); }
};

// Tensors in the order in which encoder.cpp takes them.
struct Tensors {
    std::vector<std::unique_ptr<char[]>> kept;
    std::vector<Tensor> tensors;
    std::vector<float> fixed;

    explicit Tensors(const Shape& s) {
        bytes((size_t)s.words * s.dim), floats(s.words, 0.001f, 0.02f), floats((size_t)s.positions * s.dim, -1, 1);
        floats(s.dim, 0.5f, 2), floats(s.dim, -1, 1);
        floats((size_t)s.dim * s.dim, -0.2f, 0.2f), floats(s.dim, -1, 1);
        floats((size_t)s.dim * s.labels, -0.2f, 0.2f), floats(s.labels, -1, 1);
        for (int l = 0; l < s.layers; l++) {
            product(s.dim, s.dim, true), product(s.dim, s.dim, false), product(s.dim, s.dim, false), product(s.dim, s.dim, true);
            floats(s.dim, 0.5f, 2), floats(s.dim, -1, 1);
            product(s.dim, s.inner, true), product(s.inner, s.dim, false);
            floats(s.dim, 0.5f, 2), floats(s.dim, -1, 1);
            for (int k = 0; k < 2; k++) fixed.push_back(between(0, 1) ? number(0.001f, 0.1f) : 0);
        }
    }
    char* add(size_t size) {
        kept.emplace_back(new char[size]);
        tensors.push_back({kept.back().get(), size});
        return kept.back().get();
    }
    void bytes(size_t count) {
        char* to = add(count);
        for (size_t k = 0; k < count; k++) to[k] = (char)between(-127, 127);
    }
    void floats(size_t count, float least, float most) {
        float* to = (float*)add(count * sizeof(float));
        for (size_t k = 0; k < count; k++) to[k] = number(least, most);
    }
    void product(int depth, int columns, bool biased) {
        bytes((size_t)depth * columns), floats(columns, 0.0005f, 0.005f);
        if (biased) floats(columns, -0.5f, 0.5f);
    }
};

static Shape random_shape() {
    Shape s{};
    s.heads = between(1, 16);
    s.dim = s.heads * between(1, 12);
    while (s.dim % 16) s.dim += s.heads;
    s.layers = between(1, 3), s.inner = 16 * between(1, 9), s.labels = between(1, 20), s.words = between(1, 50);
    s.positions = between(0, 19) ? between(1, 80) : between(500, 530);
    return s;
}

static void wrong_models(const Shape& shape, const char* backend, const Tensors& from) {
    const uint64_t size = encoder_bytes(&shape, backend);
    Memory memory(size);
    auto load = [&](void* to, uint64_t bytes, const Shape* s, const char* name, uint64_t fixed, const Tensor* tensors, uint64_t count) {
        return encoder_load(to, bytes, s, name, 1e-12f, from.fixed.data(), fixed, tensors, count);
    };
    const Tensor* all = from.tensors.data();
    const uint64_t count = from.tensors.size(), fixed = from.fixed.size();
    require(load(memory.begin, size - 1, &shape, backend, fixed, all, count) < 0, "too little memory");
    require(load((char*)memory.begin + 4, size, &shape, backend, fixed, all, count) < 0, "memory that is not aligned");
    require(load(nullptr, size, &shape, backend, fixed, all, count) < 0, "no memory");
    require(load(memory.begin, size, nullptr, backend, fixed, all, count) < 0, "no shape");
    require(load(memory.begin, size, &shape, "abacus", fixed, all, count) < 0, "no such backend");
    require(load(memory.begin, size, &shape, backend, fixed - 1, all, count) < 0, "too few scales");
    require(load(memory.begin, size, &shape, backend, fixed, all, count - 1) < 0, "too few tensors");
    std::vector<Tensor> wrong = from.tensors;
    Tensor& one = wrong[between(0, (int)count - 1)];
    if (between(0, 1)) one.bytes += between(0, 1) ? 1 : -1;
    else one.data = nullptr;
    require(load(memory.begin, size, &shape, backend, fixed, wrong.data(), count) < 0, "a tensor of another size");
    int32_t id = 0, length = 1;
    std::vector<float> logits(shape.labels);
    require(encoder_run(memory.begin, &id, 1, &length, 1, logits.data(), logits.size()) < 0, "a model that was not loaded");
    Shape lies = shape;
    int32_t* field = (int32_t*)&lies + between(0, 6);
    const int32_t values[] = {0, -1, INT32_MIN, INT32_MAX, 1 << 30};
    *field = values[between(0, 4)];
    require(encoder_bytes(&lies, backend) == 0, "a shape that cannot be");
}

static void wrong_texts(const Shape& shape, void* model) {
    int32_t ids[4] = {0, 0, 0, 0}, lengths[2] = {1, 1};
    std::vector<float> logits(2 * shape.labels);
    auto run = [&](uint64_t id_count, uint64_t texts, uint64_t logit_count) {
        return encoder_run(model, ids, id_count, lengths, texts, logits.data(), logit_count);
    };
    require(run(2, 2, 2 * shape.labels) >= 0, "two texts");
    require(run(3, 2, 2 * shape.labels) < 0, "more ids than lengths");
    require(run(1, 2, 2 * shape.labels) < 0, "fewer ids than lengths");
    require(run(2, 2, 2 * shape.labels - 1) < 0, "too little room");
    require(run(0, 0, 0) == 0, "no texts");
    ids[between(0, 1)] = between(0, 1) ? shape.words : -1;
    require(run(2, 2, 2 * shape.labels) < 0, "an id beyond the table");
    ids[0] = ids[1] = 0;
    const int32_t values[] = {0, -1, INT32_MIN, INT32_MAX, shape.positions + 1};
    lengths[between(0, 1)] = values[between(0, 4)];
    require(run(2, 2, 2 * shape.labels) < 0, "a length that cannot be");
}

// FNV-1a of logits, over all rounds.
static uint64_t digest = 0xcbf29ce484222325;
static void add_to_digest(const std::vector<float>& logits) {
    const unsigned char* bytes = (const unsigned char*)logits.data();
    for (size_t k = 0; k < logits.size() * sizeof(float); k++) digest = (digest ^ bytes[k]) * 0x100000001b3;
}

static void round() {
    const Shape shape = random_shape();
    const Tensors from(shape);
    std::vector<int32_t> ids, lengths;
    for (int texts = between(1, 20); texts; texts--) {
        int length = between(1, between(0, 7) && shape.positions > 12 ? 12 : shape.positions);
        lengths.push_back(length);
        while (length--) ids.push_back(between(0, shape.words - 1));
    }
    std::vector<float> expected;
    for (uint32_t k = 0; const char* backend = encoder_backend(k); k++) {
        Memory memory(encoder_bytes(&shape, backend));
        require(!encoder_load(memory.begin, memory.bytes, &shape, backend, 1e-12f, from.fixed.data(), from.fixed.size(),
                              from.tensors.data(), from.tensors.size()), "a model");
        std::vector<float> together(lengths.size() * shape.labels), alone(together.size());
        const int status = encoder_run(memory.begin, ids.data(), ids.size(), lengths.data(), lengths.size(), together.data(), together.size());
        require(status == 0, "texts");
        const int32_t* next = ids.data();
        for (size_t t = 0; t < lengths.size(); next += lengths[t++])
            require(!encoder_run(memory.begin, next, lengths[t], &lengths[t], 1, &alone[t * shape.labels], shape.labels), "a text");
        const size_t size = together.size() * sizeof(float);
        require(!memcmp(together.data(), alone.data(), size), "a text differs in a batch");
        if (k == 0) add_to_digest(expected = together);
        require(!memcmp(together.data(), expected.data(), size), "backends differ");
        wrong_texts(shape, memory.begin);
        if (k == (uint32_t)between(0, 4)) wrong_models(shape, backend, from);
    }
}

int main(int count, char** arguments) {
    const time_t end = time(nullptr) + (count > 1 ? atoi(arguments[1]) : 60);
    generator.seed(count > 2 ? strtoull(arguments[2], nullptr, 10) : 0);
    long rounds = 0;
    do round(), rounds++;
    while (time(nullptr) < end);
    printf("%ld models, digest %016llx, nothing found\n", rounds, (unsigned long long)digest);
}
