// x86-64 with AMX: tiles of sixteen rows of 64 bytes. What becomes of one block of sums is computed between
// the tile instructions of the next, so that the vector units work while the tile unit does.
//
// Weights and activations are those of AVX512-VNNI, which is faster for few rows and takes over there.
#include "avx512vnni.h"
#include "backend.h"

namespace {

constexpr int TILE_ROWS = 16, TILE_BYTES = 64;
// A tile of weights has sixteen groups of the depth; the two vectors of a panel stand side by side.
constexpr int GROUPS_BYTES = 2 * TILE_BYTES;
constexpr int COLUMNS = 2 * LANES, BLOCK_ROWS = 2 * TILE_ROWS;

#ifdef EMULATED
struct Tiles {
    static inline uint8_t bytes[8][TILE_ROWS][TILE_BYTES];
    static inline int32_t sums[8][TILE_ROWS][LANES];

    template <int T>
    static void start(const int32_t* corrections) {
        for (auto& row : sums[T]) __builtin_memcpy(row, corrections, sizeof row);
    }
    template <int T>
    static void load(const void* from, size_t stride) {
        for (int r = 0; r < TILE_ROWS; r++) __builtin_memcpy(bytes[T][r], (const char*)from + r * stride, TILE_BYTES);
    }
    template <int T, int A, int B>
    static void add_products() {
        for (int r = 0; r < TILE_ROWS; r++)
            for (int k = 0; k < TILE_BYTES; k += 4) {
                int32_t numbers;
                __builtin_memcpy(&numbers, bytes[A][r] + k, sizeof numbers);
                Ints row = dot(load_as<Ints>(sums[T][r]), numbers, (const int8_t*)bytes[B][k / 4]);
                __builtin_memcpy(sums[T][r], &row, sizeof row);
            }
    }
    template <int T>
    static void store(int32_t* to, size_t stride) {
        for (int r = 0; r < TILE_ROWS; r++) __builtin_memcpy((char*)to + r * stride, sums[T][r], sizeof sums[T][r]);
    }
};
#else
struct Tiles {
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } configuration;
        for (int t = 0; t < 8; t++) configuration.row_bytes[t] = TILE_BYTES, configuration.rows[t] = TILE_ROWS;
        _tile_loadconfig(&configuration);
    }
    ~Tiles() { _tile_release(); }
    // With a stride of 0 every row of the tile is the same.
    template <int T>
    static INLINE void start(const int32_t* corrections) { _tile_loadd(T, corrections, 0); }
    template <int T>
    static INLINE void load(const void* from, size_t stride) { _tile_loadd(T, from, stride); }
    template <int T, int A, int B>
    static INLINE void add_products() { _tile_dpbusd(T, A, B); }
    template <int T>
    static INLINE void store(int32_t* to, size_t stride) { _tile_stored(T, to, stride); }
};
#endif

// Sums that are yet to be finished, row by row.
template <class Epilogue>
struct Pending {
    const Epilogue& epilogue;
    const int32_t* sums = nullptr;
    int row = 0, column = 0, next = 0, rows = 0;

    INLINE void finish(int more) {
        for (int end = next + more < rows ? next + more : rows; next < end; next++) {
            Ints of_row[2] = {load(sums + next * COLUMNS), load(sums + next * COLUMNS + LANES)};
            epilogue.put(row + next, column, of_row);
        }
    }
};

struct Amx : Avx512Vnni {
    // Fewer rows would leave most of a tile empty.
    static constexpr int FEW_ROWS = 4;

    template <class Epilogue>
    static void multiply(const Activation* rows, size_t stride, int count, const Matrix& matrix, const Epilogue& epilogue) {
        if (count <= FEW_ROWS || matrix.columns % COLUMNS)
            return Avx512Vnni::multiply(rows, stride, count, matrix, epilogue);
        alignas(64) int32_t sums[2][BLOCK_ROWS * COLUMNS];
        Pending<Epilogue> pending{epilogue};
        int buffer = 0;
        for (int column = 0; column < matrix.columns; column += COLUMNS)
            for (int row = 0; row < count; row += BLOCK_ROWS) {
                const Activation* from = rows + row * stride;
                const int left = count - row < BLOCK_ROWS ? count - row : BLOCK_ROWS;
                if (left > TILE_ROWS) block<2>(from, stride, matrix, column, sums[buffer], pending);
                else block<1>(from, stride, matrix, column, sums[buffer], pending);
                pending.sums = sums[buffer];
                pending.row = row, pending.column = column, pending.next = 0, pending.rows = left;
                buffer ^= 1;
            }
        pending.finish(BLOCK_ROWS);
    }

    template <int TALL, class Epilogue>
    static INLINE void block(const Activation* rows, size_t stride, const Matrix& matrix, int column, int32_t* sums,
                             Pending<Epilogue>& pending) {
        const int8_t* weights = matrix.weights + (size_t)column * matrix.depth;
        const int steps = matrix.depth / TILE_BYTES, rows_a_step = (BLOCK_ROWS + steps - 1) / steps;
        Tiles::start<0>(matrix.corrections + column);
        Tiles::start<1>(matrix.corrections + column + LANES);
        if (TALL == 2) {
            Tiles::start<2>(matrix.corrections + column);
            Tiles::start<3>(matrix.corrections + column + LANES);
        }
        for (int step = 0; step < steps; step++, rows += TILE_BYTES, weights += TILE_ROWS * GROUPS_BYTES) {
            Tiles::load<4>(rows, stride);
            Tiles::load<6>(weights, GROUPS_BYTES);
            Tiles::load<7>(weights + TILE_BYTES, GROUPS_BYTES);
            Tiles::add_products<0, 4, 6>();
            if (TALL == 2) Tiles::load<5>(rows + TILE_ROWS * stride, stride);
            Tiles::add_products<1, 4, 7>();
            if (TALL == 2) {
                Tiles::add_products<2, 5, 6>();
                Tiles::add_products<3, 5, 7>();
            }
            pending.finish(rows_a_step);
        }
        pending.finish(BLOCK_ROWS);
        constexpr size_t sums_stride = COLUMNS * sizeof(int32_t);
        Tiles::store<0>(sums, sums_stride);
        Tiles::store<1>(sums + LANES, sums_stride);
        if (TALL == 2) {
            Tiles::store<2>(sums + TILE_ROWS * COLUMNS, sums_stride);
            Tiles::store<3>(sums + TILE_ROWS * COLUMNS + LANES, sums_stride);
        }
    }
};

}  // namespace

BACKEND(amx, Amx)
