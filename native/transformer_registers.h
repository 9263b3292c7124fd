// The product of bytes for processors that multiply in registers: a row's four bytes, broadcast, by four bytes of as many
// outputs as a register has lanes.
#pragma once

#include "transformer_steps.h"

#if defined(__GNUC__)

namespace m3edge {
namespace {  // a copy for each file, compiled for its instruction set

// I: Register, Row; outputs (a register's), rows and panels (multiplied together), offset; broadcast, add_dot
template <class I>
struct InRegisters {
    static constexpr size_t tiles = 1, panels = I::panels, panel_registers = panel_width / I::outputs;
    static constexpr int32_t offset = I::offset;

    static void begin() {}
    static void end() {}

    template <size_t T, size_t P>
    static M3EDGE_INLINE void sums(const uint8_t* rows, const int8_t* weights, size_t k_blocks,
                                   int32_t (*out)[P][tile_rows][panel_width]) {
        constexpr size_t rest = tile_rows % I::rows;
        size_t row = 0;
        for (; row + I::rows <= tile_rows; row += I::rows) row_sums<I::rows, P>(rows, weights, k_blocks, row, out[0]);
        if constexpr (rest != 0) row_sums<rest, P>(rows, weights, k_blocks, row, out[0]);
    }

    template <size_t R, size_t P>
    static M3EDGE_INLINE void row_sums(const uint8_t* rows, const int8_t* weights, size_t k_blocks, size_t first,
                                       int32_t (*out)[tile_rows][panel_width]) {
        constexpr size_t C = panel_registers * P;
        typename I::Register sums[R][C] = {};
        rows += first * tile_depth;
        for (size_t block = 0; block < k_blocks; ++block, rows += tile_bytes, weights += panel_bytes)
#pragma GCC unroll 4
            for (size_t k = 0; k < tile_depth; k += 4) {
                typename I::Register columns[C];
                for (size_t c = 0; c < C; ++c)
                    columns[c] = load<typename I::Register>(weights + c / panel_registers * k_blocks * panel_bytes +
                                                            k * panel_width + c % panel_registers * I::outputs * 4);
                for (size_t r = 0; r < R; ++r) {
                    const typename I::Row row = I::broadcast(load<int32_t>(rows + r * tile_depth + k));
                    for (size_t c = 0; c < C; ++c) sums[r][c] = I::add_dot(sums[r][c], row, columns[c]);
                }
            }
        for (size_t r = 0; r < R; ++r)
            for (size_t c = 0; c < C; ++c)
                store(out[c / panel_registers][first + r] + c % panel_registers * I::outputs, sums[r][c]);
    }
};

}  // namespace
}  // namespace m3edge

#endif
