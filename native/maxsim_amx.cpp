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

// The dimensions `counted` of some rows, zeros for the others.
M3EDGE_INLINE void copy_rows(const int8_t* rows, size_t stride, int n_rows, __mmask64 counted, int8_t* out) {
    for (int r = 0; r < n_rows; ++r)
        _mm512_store_si512(out + r * depth, _mm512_maskz_loadu_epi8(counted, rows + r * stride));
}

// Products of one or two tiles' rows with one or two blocks of query tokens. first: each tile's first row; is_whole: they
// have sixteen rows each, else there is one, with those of `tile`; next: what will be read after them
template <int row_tiles, int blocks, bool is_whole>
M3EDGE_INLINE void multiply(const Tile& tile, const int first[2], const uint8_t* query, float* best, const int8_t* next) {
    const int n_rows = is_whole ? tile_rows : tile.n_rows;
    const uint8_t* other = query + tile.width * lanes;  // the next block
    alignas(64) int8_t copies[2][tile_rows * depth];    // rows that are not there give sums that nobody reads
    _tile_zero(0);
    if constexpr (blocks > 1) _tile_zero(1);
    if constexpr (row_tiles > 1) _tile_zero(2);
    if constexpr (row_tiles > 1 && blocks > 1) _tile_zero(3);
    for (size_t k = 0; k < tile.width; k += depth) {
        for (size_t line = 0; line < row_tiles * tile_rows; ++line)
            fetch_ahead(next + k * (row_tiles * tile_rows) + line * cache_line);
        const int8_t* rows[2] = {tile.rows + first[0] * tile.stride + k, tile.rows + first[1] * tile.stride + k};
        size_t stride = tile.stride;
        const size_t rest = tile.width - k;  // behind it, what the query's tile holds does not count
        if (!is_whole || rest < depth) {
            const __mmask64 counted = rest < depth ? (__mmask64(1) << rest) - 1 : ~__mmask64(0);
            for (int t = 0; t < row_tiles; ++t) {
                copy_rows(rows[t], stride, n_rows, counted, copies[t]);
                rows[t] = copies[t];
            }
            stride = depth;
            M3EDGE_SETTLE_MEMORY();
        }
        _tile_loadd(6, query + k * lanes, lanes * 4);
        _tile_loadd(4, rows[0], stride);
        _tile_dpbssd(0, 4, 6);
        if constexpr (blocks > 1) {
            _tile_loadd(7, other + k * lanes, lanes * 4);
            _tile_dpbssd(1, 4, 7);
        }
        if constexpr (row_tiles > 1) {
            _tile_loadd(5, rows[1], stride);
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
            raise(best + block * lanes, sums[t][block], tile, first[t], n_rows);
}

// Where rows do not divide by sixteen, the last sixteen hold some that the tile before held as well: a maximum does not
// change when it is taken twice.
template <int blocks>
void multiply_rows(const Tile& tile, const uint8_t* query, float* best) {
    const int last = tile.n_rows - tile_rows;
    if (last < 0) {
        const int first[2] = {0, 0};
        return multiply<1, blocks, false>(tile, first, query, best, tile.next);
    }
    for (int row = 0; row < tile.n_rows; row += 2 * tile_rows) {
        const int after = row + 2 * tile_rows;
        const int first[2] = {row < last ? row : last, row + tile_rows < last ? row + tile_rows : last};
        const int8_t* next = after < tile.n_rows ? tile.rows + (after < last ? after : last) * tile.stride : tile.next;
        if (row + tile_rows < tile.n_rows)
            multiply<2, blocks, true>(tile, first, query, best, next);
        else
            multiply<1, blocks, true>(tile, first, query, best, next);
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
