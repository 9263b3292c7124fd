// The tile product with AMX (Intel's servers since 2023): sixteen document tokens by sixteen query tokens by sixty-four
// dimensions in one instruction.
#include "maxsim_tile.h"

#if defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__AVX512BW__)
#include <immintrin.h>

#include "amx.h"

namespace m3edge {
namespace {

constexpr int tile_rows = 16, lanes = 16;  // document tokens and query tokens of a product
constexpr size_t depth = 64;               // dimensions of one

// best = max(best, sums * scales), for the query tokens of one tile of sums, those of rows from `first` on.
M3EDGE_INLINE void raise(float* best, const int32_t* sums, const Tile& tile, int first, int n_rows) {
    __m512 highest = _mm512_loadu_ps(best);
    for (int r = 0; r < n_rows; ++r) {
        const __m512 dots = _mm512_cvtepi32_ps(_mm512_load_si512(sums + r * lanes));
        highest = _mm512_max_ps(_mm512_mul_ps(dots, _mm512_set1_ps(scale_of(tile, first + r))), highest);
    }
    _mm512_storeu_ps(best, highest);
}

// The dimensions `counted` of some rows, zeros for the others. Rows of records lie across cache lines; a tile that was
// read from there directly would read each line twice.
M3EDGE_INLINE void copy_rows(const int8_t* rows, size_t stride, int n_rows, __mmask64 counted, int8_t* out) {
    for (int r = 0; r < n_rows; ++r)
        _mm512_store_si512(out + r * depth, _mm512_maskz_loadu_epi8(counted, rows + r * stride));
}

// Products of one or two tiles' rows, from row `first` on, with one or two blocks of query tokens. `next`: what will be
// read after them
template <int row_tiles, int blocks>
M3EDGE_INLINE void multiply(const Tile& tile, int first, const uint8_t* query, float* best, const int8_t* next) {
    const int remaining = tile.n_rows - first;
    const int n_rows[2] = {remaining < tile_rows ? remaining : tile_rows,
                           remaining < 2 * tile_rows ? remaining - tile_rows : tile_rows};
    const int8_t* rows[2] = {tile.rows + first * tile.stride, tile.rows + (first + tile_rows) * tile.stride};
    const uint8_t* other = query + tile.width * lanes;  // the next block
    alignas(64) int8_t copies[2][tile_rows * depth];    // rows that are not there give sums that nobody reads
    _tile_zero(0);
    if constexpr (blocks > 1) _tile_zero(1);
    if constexpr (row_tiles > 1) _tile_zero(2);
    if constexpr (row_tiles > 1 && blocks > 1) _tile_zero(3);
    for (size_t k = 0; k < tile.width; k += depth) {
        for (size_t line = 0; line < row_tiles * tile_rows; ++line)
            fetch_ahead(next + k * (row_tiles * tile_rows) + line * cache_line);
        const size_t rest = tile.width - k;  // behind it, what the query's tile holds does not count
        const __mmask64 counted = rest < depth ? (__mmask64(1) << rest) - 1 : ~__mmask64(0);
        for (int t = 0; t < row_tiles; ++t) copy_rows(rows[t] + k, tile.stride, n_rows[t], counted, copies[t]);
        M3EDGE_SETTLE_MEMORY();
        _tile_loadd(6, query + k * lanes, lanes * 4);
        _tile_loadd(4, copies[0], depth);
        _tile_dpbssd(0, 4, 6);
        if constexpr (blocks > 1) {
            _tile_loadd(7, other + k * lanes, lanes * 4);
            _tile_dpbssd(1, 4, 7);
        }
        if constexpr (row_tiles > 1) {
            _tile_loadd(5, copies[1], depth);
            _tile_dpbssd(2, 5, 6);
            if constexpr (blocks > 1) _tile_dpbssd(3, 5, 7);
        }
    }
    alignas(64) int32_t sums[2][2][tile_rows * lanes];
    _tile_stored(0, sums[0][0], lanes * 4);
    if constexpr (blocks > 1) _tile_stored(1, sums[0][1], lanes * 4);
    if constexpr (row_tiles > 1) _tile_stored(2, sums[1][0], lanes * 4);
    if constexpr (row_tiles > 1 && blocks > 1) _tile_stored(3, sums[1][1], lanes * 4);
    M3EDGE_SETTLE_MEMORY();
    for (int t = 0; t < row_tiles; ++t)
        for (int block = 0; block < blocks; ++block)
            raise(best + block * lanes, sums[t][block], tile, first + t * tile_rows, n_rows[t]);
}

template <int blocks>
void multiply_rows(const Tile& tile, const uint8_t* query, float* best) {
    constexpr int step = 2 * tile_rows;
    for (int row = 0; row < tile.n_rows; row += step) {
        const int8_t* next = row + step < tile.n_rows ? tile.rows + (row + step) * tile.stride : tile.next;
        if (tile.n_rows - row > tile_rows)
            multiply<2, blocks>(tile, row, query, best, next);
        else
            multiply<1, blocks>(tile, row, query, best, next);
    }
}

// Tiles 0 to 3 are sums, 4 and 5 document tokens, 6 and 7 query tokens.
void run_amx(const Tile& tile) {
    const TileLayout layout;
    _tile_loadconfig(&layout);
    size_t block = 0;
    for (; block + 1 < tile.n_blocks; block += 2)
        multiply_rows<2>(tile, tile.query + block * tile.width * lanes, tile.best + block * lanes);
    if (block < tile.n_blocks) multiply_rows<1>(tile, tile.query + block * tile.width * lanes, tile.best + block * lanes);
    _tile_release();
}

constexpr TileKernel kernel = {128, lanes, 0, run_amx};

}  // namespace

const TileKernel* tile_kernel_amx() { return &kernel; }

}  // namespace m3edge
#else
const m3edge::TileKernel* m3edge::tile_kernel_amx() { return nullptr; }
#endif
