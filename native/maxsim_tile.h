// What maxsim.cpp and the instruction sets' files agree on. The query is packed so that one register holds the same
// four dimensions of as many query tokens as it has lanes; a document's four bytes are broadcast against it. The
// maximum over a document's tokens is then a maximum of registers, and nothing is ever summed across lanes.
//
// Included by files compiled for different instruction sets: no inline function of the standard library may be used
// here, or the linker could keep the copy that only some processors can run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace m3edge {

constexpr int max_tile_rows = 12;

struct Tile {
    const int8_t* rows;     // document tokens, one byte a dimension
    size_t stride;          // bytes from one row to the next
    int n_rows;             // at most TileKernel::rows
    const float* scales;    // of the rows
    size_t width;           // bytes of a row that count, a multiple of 4
    const uint8_t* query;   // [n_blocks][width / 4][block_lanes][4]: see query_offset
    size_t n_blocks;
    float* best;            // [n_blocks * block_lanes]: raised to this tile's products, scaled with the rows' scales
};

struct TileKernel {
    int rows;          // document tokens a tile takes
    int block_lanes;   // query tokens multiplied together; a query is padded to a multiple
    int query_offset;  // what is added to the query's signed bytes before packing: 128 where the product wants unsigned
    void (*run)(const Tile&);
};

// nullptr where the compiler could not build it.
const TileKernel* tile_kernel_plain();
const TileKernel* tile_kernel_avx2();
const TileKernel* tile_kernel_avxvnni();
const TileKernel* tile_kernel_avx512vnni();
const TileKernel* tile_kernel_neon();

namespace {  // a copy for each file, compiled for its instruction set

// V: Ints, Floats, Query; lanes, groups, rows, offset; zero, load_query, broadcast, add_dot, row_sum, scaled, raise
template <class V, int R>
inline void multiply_tile(const Tile& tile, const uint8_t* query, float* best) {
    typename V::Ints sums[R][V::groups];
    for (int r = 0; r < R; ++r)
        for (int g = 0; g < V::groups; ++g) sums[r][g] = V::zero();
    for (size_t k = 0; k < tile.width; k += 4) {
        typename V::Query q[V::groups];
        for (int g = 0; g < V::groups; ++g) q[g] = V::load_query(query + g * V::lanes * 4);
        query += V::groups * V::lanes * 4;
        for (int r = 0; r < R; ++r) {
            const typename V::Ints d = V::broadcast(tile.rows + r * tile.stride + k);
            for (int g = 0; g < V::groups; ++g) sums[r][g] = V::add_dot(sums[r][g], q[g], d);
        }
    }
    for (int r = 0; r < R; ++r) {
        const int32_t correction = V::offset == 0 ? 0 : V::offset * V::row_sum(tile.rows + r * tile.stride, tile.width);
        for (int g = 0; g < V::groups; ++g)
            V::raise(best + g * V::lanes, V::scaled(sums[r][g], correction, tile.scales[r]));
    }
}

template <class V, int R = V::rows>
inline void multiply_rows(const Tile& tile, const uint8_t* query, float* best) {
    if constexpr (R > 1) {
        if (tile.n_rows < R) return multiply_rows<V, R - 1>(tile, query, best);
    }
    multiply_tile<V, R>(tile, query, best);
}

template <class V>
void run_tile(const Tile& tile) {
    const size_t lanes = V::groups * V::lanes;
    for (size_t block = 0; block < tile.n_blocks; ++block)
        multiply_rows<V>(tile, tile.query + block * tile.width * lanes, tile.best + block * lanes);
}

template <class V>
constexpr TileKernel kernel_of = {V::rows, V::groups * V::lanes, V::offset, run_tile<V>};

}  // namespace
}  // namespace m3edge
