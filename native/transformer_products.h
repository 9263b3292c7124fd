// Products of rows with panels, four bytes of each at a time: four bytes, two 16-bit numbers or a float. How a register or a
// tile multiplies them is every instruction set's own.
#pragma once

#include "transformer_vectors.h"

#if defined(__GNUC__)

namespace m3edge {
namespace {  // a copy for each file, compiled for its instruction set

template <size_t N>
struct Count {
    static constexpr size_t value = N;
};

// Calls work(T, P, tile, panel) for some tiles by some panels in blocks of B::tiles by B::panels, and what remains.
template <class B, size_t T, size_t P, class Work>
M3EDGE_INLINE void one_block(size_t tile, size_t tiles, size_t panel, size_t panels, const Work& work) {
    if constexpr (T > 1) {
        if (tiles < T) return one_block<B, T - 1, P>(tile, tiles, panel, panels, work);
    }
    if constexpr (P > 1) {
        if (panels < P) return one_block<B, T, P - 1>(tile, tiles, panel, panels, work);
    }
    work(Count<T>{}, Count<P>{}, tile, panel);
}
template <class B, class Work>
M3EDGE_INLINE void blocks(size_t first_tile, size_t end_tile, size_t first_panel, size_t end_panel, const Work& work) {
    for (size_t panel = first_panel; panel < end_panel; panel += B::panels)
        for (size_t tile = first_tile; tile < end_tile; tile += B::tiles)
            one_block<B, B::tiles, B::panels>(tile, end_tile - tile, panel, end_panel - panel, work);
}

// The sums of a block's products as B::sums writes them: int32 or a float's bits, a row every `stride`.
struct Operands {
    const uint8_t *rows, *panels;
    size_t k_blocks;

    template <class B, size_t T, size_t P>
    M3EDGE_INLINE void sums(size_t tile, size_t panel, int32_t* out, size_t stride) const {
        B::template sums<T, P>(rows + tile * k_blocks * tile_bytes, panels + panel * k_blocks * panel_bytes, k_blocks, out,
                               stride);
    }
};

// All sums of some tiles by some panels.
template <class B>
M3EDGE_INLINE void multiply_into(const Operands& of, size_t n_tiles, size_t n_panels, int32_t* out, size_t stride) {
    blocks<B>(0, n_tiles, 0, n_panels, [&](auto T, auto P, size_t tile, size_t panel) M3EDGE_ALWAYS {
        of.template sums<B, decltype(T)::value, decltype(P)::value>(
            tile, panel, out + tile * tile_rows * stride + panel * panel_width, stride);
    });
}

// Calls finish(tile, panel, sums, stride) for each of some tiles by each of some panels, while its sums are at hand.
template <class B, class Finish>
M3EDGE_INLINE void multiply_tiles(const Operands& of, size_t first_tile, size_t end_tile, size_t first_panel, size_t end_panel,
                                  const Finish& finish) {
    blocks<B>(first_tile, end_tile, first_panel, end_panel, [&](auto T, auto P, size_t tile, size_t panel) M3EDGE_ALWAYS {
        constexpr size_t n_tiles = decltype(T)::value, n_panels = decltype(P)::value, stride = n_panels * panel_width;
        alignas(64) int32_t sums[n_tiles * tile_rows * stride];
        of.template sums<B, n_tiles, n_panels>(tile, panel, sums, stride);
        for (size_t p = 0; p < n_panels; ++p)
            for (size_t t = 0; t < n_tiles; ++t)
                finish(tile + t, panel + p, sums + t * tile_rows * stride + p * panel_width, stride);
    });
}

// For processors that multiply in registers: four bytes of a row, broadcast, by four bytes of as many outputs as a register
// has lanes. I: Register, Row; outputs (a register's), rows and panels (multiplied together); broadcast, add_dot
template <class I>
struct InRegisters {
    static constexpr size_t tiles = 1, panels = I::panels, panel_registers = panel_width / I::outputs;

    static void begin() {}
    static void end() {}

    template <size_t T, size_t P>
    static M3EDGE_INLINE void sums(const uint8_t* rows, const uint8_t* weights, size_t k_blocks, int32_t* out, size_t stride) {
        constexpr size_t rest = tile_rows % I::rows;
        size_t row = 0;
        for (; row + I::rows <= tile_rows; row += I::rows) row_sums<I::rows, P>(rows, weights, k_blocks, row, out, stride);
        if constexpr (rest != 0) row_sums<rest, P>(rows, weights, k_blocks, row, out, stride);
    }

    template <size_t R, size_t P>
    static M3EDGE_INLINE void row_sums(const uint8_t* rows, const uint8_t* weights, size_t k_blocks, size_t first, int32_t* out,
                                       size_t stride) {
        constexpr size_t C = panel_registers * P;
        typename I::Register sums[R][C] = {};
        rows += first * tile_depth;
        for (size_t block = 0; block < k_blocks; ++block, rows += tile_bytes, weights += panel_bytes)
#pragma GCC unroll 4
            for (size_t k = 0; k < tile_depth; k += 4) {
                typename I::Register columns[C];
                for (size_t c = 0; c < C; ++c) {
                    const uint8_t* column = weights + c / panel_registers * k_blocks * panel_bytes + k * panel_width +
                                            c % panel_registers * I::outputs * 4;
                    if (first == 0)  // the next panels: of few rows, reading weights is what takes time
                        __builtin_prefetch(column + P * k_blocks * panel_bytes, 0, 2);
                    columns[c] = load<typename I::Register>(column);
                }
                for (size_t r = 0; r < R; ++r) {
                    const typename I::Row row = I::broadcast(load<int32_t>(rows + r * tile_depth + k));
                    for (size_t c = 0; c < C; ++c) sums[r][c] = I::add_dot(sums[r][c], row, columns[c]);
                }
            }
        for (size_t r = 0; r < R; ++r)
            for (size_t c = 0; c < C; ++c)
                store(out + (first + r) * stride + c * I::outputs, sums[r][c]);
    }
};

}  // namespace
}  // namespace m3edge

#endif
