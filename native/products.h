// The int8 product of rows with packed weights, in tiles that stay in registers.
//
// `D` multiplies: it says how many numbers next to each other one instruction adds up (`GROUP`), and how
// large tiles are. Columns stand in panels of `PANEL` vectors; in a panel, for each group of the depth,
// vector after vector, column after column, the weights of that group.
#pragma once

#include "model.h"

namespace {

template <class D, int ROWS, int VECTORS, class Epilogue>
INLINE void tile(const typename D::Activation* rows, size_t stride, const int8_t* weights, const Matrix& matrix,
                 int row, int column, const Epilogue& epilogue) {
    Ints sums[ROWS][VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) {
        Ints start = D::start(matrix.corrections + column + v * LANES);
        UNROLL for (int r = 0; r < ROWS; r++) sums[r][v] = start;
    }
    for (int k = 0; k < matrix.depth; k += D::GROUP) {
        typename D::Weights group[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) {
            group[v] = D::load_weights(weights);
            weights += LANES * D::GROUP;
        }
        UNROLL for (int r = 0; r < ROWS; r++) {
            int32_t numbers;
            __builtin_memcpy(&numbers, rows + r * stride + k, sizeof numbers);
            UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] = D::add_products(sums[r][v], numbers, group[v]);
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++) epilogue.put(row + r, column, sums[r]);
}

template <class D, int ROWS, int VECTORS, class Epilogue>
void tile_of(int count, const typename D::Activation* rows, size_t stride, const int8_t* weights, const Matrix& matrix,
             int row, int column, const Epilogue& epilogue) {
    if constexpr (ROWS > 1) {
        if (count < ROWS) return tile_of<D, ROWS - 1, VECTORS>(count, rows, stride, weights, matrix, row, column, epilogue);
    }
    tile<D, ROWS, VECTORS>(rows, stride, weights, matrix, row, column, epilogue);
}

template <class D, int VECTORS, class Epilogue>
void panel(const typename D::Activation* rows, size_t stride, int count, const Matrix& matrix, int column,
           const Epilogue& epilogue) {
    const int8_t* weights = matrix.weights + (size_t)column * matrix.depth;
    // Tiles of nearly the same number of rows: one of a single row is the slowest for each.
    const int tiles = (count + D::ROWS - 1) / D::ROWS;
    for (int t = 0, row = 0; t < tiles; t++) {
        int end = (t + 1) * count / tiles;
        tile_of<D, D::ROWS, VECTORS>(end - row, rows + row * stride, stride, weights, matrix, row, column, epilogue);
        row = end;
    }
}

template <class D, class Epilogue>
void multiply_in_registers(const typename D::Activation* rows, size_t stride, int count, const Matrix& matrix,
                           const Epilogue& epilogue) {
    int column = 0;
    for (; column + D::PANEL * LANES <= matrix.columns; column += D::PANEL * LANES)
        panel<D, D::PANEL>(rows, stride, count, matrix, column, epilogue);
    for (; column < matrix.columns; column += LANES) panel<D, 1>(rows, stride, count, matrix, column, epilogue);
}

// What a backend inherits that multiplies in registers alone, and sizes of its tiles that fit sixteen
// registers of 256 bits, or thirty-two of 128.
template <class D>
struct InRegisters {
    static constexpr int PANEL = 1, ROWS = 6;
    static constexpr int QUERY_ROWS = 2, KEY_ROWS = 3, VALUE_COLUMNS = 2;

    template <class Activation, class Epilogue>
    static void multiply(const Activation* rows, size_t stride, int count, const Matrix& matrix, const Epilogue& epilogue) {
        multiply_in_registers<D>(rows, stride, count, matrix, epilogue);
    }
};

}  // namespace
