// What maxsim.cpp and the instruction sets' files agree on. The query is packed so that one register holds the same
// four bytes of as many query tokens as it has lanes, which are four dimensions in 8 bits or one in float32; a
// document's four bytes are broadcast against it. The maximum over a document's tokens is then a maximum of registers,
// and nothing is ever summed across lanes.
//
// Included by files compiled for different instruction sets: no inline function of the standard library may be used
// here, or the linker could keep the copy that only some processors can run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "inline.h"

namespace m3edge {

constexpr size_t lines_behind_query = 16;  // of 64 bytes, that may be read and do not count

struct Tile {
    const int8_t* rows;     // document tokens: bytes, or the bytes of floats
    size_t stride;          // bytes from one row to the next
    int n_rows;             // at most TileKernel::rows
    const uint8_t* scales;  // of the rows, each a float
    size_t scale_stride;    // bytes from one to the next
    size_t width;           // bytes of a row that count, a multiple of 4
    const uint8_t* query;   // [n_blocks][width / 4][block_lanes][4], aligned to a cache line: see query_offset;
                            // lines_behind_query lines behind it may be read
    size_t n_blocks;
    const int8_t* next;     // what will be read after this tile; its own rows where that is not known
    float* best;            // [n_blocks * block_lanes]: raised to this tile's products, scaled with the rows' scales
};

struct TileKernel {
    int rows;          // document tokens a tile takes
    int block_lanes;   // query tokens multiplied together; a query is padded to a multiple
    int query_offset;  // what is added to the query's signed bytes before packing: 128 where the product wants unsigned
    void (*run)(const Tile&);
};

// A tile product of floats, and what makes floats of half-precision numbers.
struct FloatKernel {
    TileKernel tile;
    void (*widen)(const uint8_t* halves, size_t n, float* out);
};

// nullptr where the compiler could not build it.
const TileKernel* tile_kernel_plain();
const TileKernel* tile_kernel_avx2();
const TileKernel* tile_kernel_avxvnni();
const TileKernel* tile_kernel_avx512vnni();
const TileKernel* tile_kernel_amx();
const TileKernel* tile_kernel_neon();
const FloatKernel* float_kernel_plain();
const FloatKernel* float_kernel_avx2();
const FloatKernel* float_kernel_avx512vnni();
const FloatKernel* float_kernel_neon();

namespace {  // a copy for each file, compiled for its instruction set

constexpr size_t cache_line = 64;

M3EDGE_INLINE float scale_of(const Tile& tile, int row) {
    float scale;
    std::memcpy(&scale, tile.scales + row * tile.scale_stride, sizeof scale);
    return scale;
}

// Into the second level: the first has no room beside the query and this tile's rows.
M3EDGE_INLINE void fetch_ahead(const int8_t* bytes) {
#if defined(__GNUC__)
    __builtin_prefetch(bytes, 0, 2);
#else
    (void)bytes;
#endif
}

// N registers, by recursion: of an array, which a loop indexes, gcc would keep a copy in memory and write it each time.
template <class V, int N>
struct Query {
    Query<V, N - 1> others;
    typename V::Query last;

    M3EDGE_INLINE void load(const uint8_t* bytes) {
        others.load(bytes);
        last = V::load_query(bytes + (N - 1) * V::lanes * 4);
    }
};
template <class V>
struct Query<V, 0> {
    M3EDGE_INLINE void load(const uint8_t*) {}
};

// One document token's products with a block of query tokens.
template <class V, int N>
struct Sums {
    Sums<V, N - 1> others;
    typename V::Register last = V::zero();

    M3EDGE_INLINE void add(const Query<V, N>& query, typename V::Register document) {
        others.add(query.others, document);
        last = V::add_dot(last, query.last, document);
    }
    M3EDGE_INLINE void raise(float* best, int32_t correction, float scale) const {
        others.raise(best, correction, scale);
        V::raise(best + (N - 1) * V::lanes, V::scaled(last, correction, scale));
    }
};
template <class V>
struct Sums<V, 0> {
    M3EDGE_INLINE void add(const Query<V, 0>&, typename V::Register) {}
    M3EDGE_INLINE void raise(float*, int32_t, float) const {}
};

// R document tokens' products with a block of query tokens.
template <class V, int R>
struct Rows {
    Rows<V, R - 1> others;
    Sums<V, V::groups> last;

    M3EDGE_INLINE void add(const Query<V, V::groups>& query, const int8_t* rows, size_t stride) {
        others.add(query, rows, stride);
        last.add(query, V::broadcast(rows + (R - 1) * stride));
    }
    M3EDGE_INLINE void raise(float* best, const Tile& tile) const {
        others.raise(best, tile);
        int32_t correction = 0;
        if constexpr (V::offset != 0)
            correction = V::offset * V::row_sum(tile.rows + (R - 1) * tile.stride, tile.width);
        last.raise(best, correction, scale_of(tile, R - 1));
    }
};
template <class V>
struct Rows<V, 0> {
    M3EDGE_INLINE void add(const Query<V, V::groups>&, const int8_t*, size_t) {}
    M3EDGE_INLINE void raise(float*, const Tile&) const {}
};

// V: Register, Query; lanes, groups, rows, offset; zero, load_query, broadcast, add_dot, scaled, raise; row_sum with an
// offset, widen for floats
template <class V, int R>
inline void multiply_tile(const Tile& tile, const uint8_t* query, float* best) {
    Rows<V, R> sums;
    for (size_t k = 0; k < tile.width; k += 4, query += V::groups * V::lanes * 4) {
        // Rows are read side by side, which the processor's own prefetching does not follow; the next ones are asked for
        // one line after another, which it does. Measured on 18 MB: 2.7 ms instead of 4.7 to 11.
        if (k % cache_line == 0)
            for (size_t line = 0; line < R; ++line) fetch_ahead(tile.next + k * R + line * cache_line);
        Query<V, V::groups> registers;
        registers.load(query);
        sums.add(registers, tile.rows + k, tile.stride);
    }
    sums.raise(best, tile);
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

template <class V>
void widen(const uint8_t* halves, size_t n, float* out) {
    size_t k = 0;
    for (; k + V::lanes <= n; k += V::lanes) V::widen(halves + 2 * k, out + k);
    if (k < n) float_kernel_plain()->widen(halves + 2 * k, n - k, out + k);
}

template <class V>
constexpr FloatKernel float_kernel_of = {kernel_of<V>, widen<V>};

}  // namespace
}  // namespace m3edge
