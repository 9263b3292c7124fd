// The product of bytes with AMX: a tile of rows by a panel of weights in one instruction.
#include "transformer_kernels.h"

#if defined(__GNUC__) && defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__AVX512BW__)
#include <immintrin.h>

#include "amx.h"
#include "transformer_steps.h"

namespace m3edge {
namespace {

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights.
struct Amx {
    static constexpr size_t tiles = 2, panels = 2;
    static constexpr int32_t offset = 0;

    static void begin() {
        const TileLayout layout;
        _tile_loadconfig(&layout);
    }
    static void end() { _tile_release(); }

    template <size_t T, size_t P>
    static M3EDGE_INLINE void sums(const uint8_t* rows, const int8_t* weights, size_t k_blocks,
                                   int32_t (*out)[P][tile_rows][panel_width]) {
        const uint8_t* second_rows = rows + k_blocks * tile_bytes;
        const int8_t* second_weights = weights + k_blocks * panel_bytes;
        _tile_zero(0);
        if constexpr (P > 1) _tile_zero(1);
        if constexpr (T > 1) _tile_zero(2);
        if constexpr (T > 1 && P > 1) _tile_zero(3);
        M3EDGE_SETTLE_MEMORY();
        for (size_t k = 0; k < k_blocks; ++k) {
            _tile_loadd(6, weights + k * panel_bytes, 64);
            _tile_loadd(4, rows + k * tile_bytes, 64);
            _tile_dpbusd(0, 4, 6);
            if constexpr (P > 1) {
                _tile_loadd(7, second_weights + k * panel_bytes, 64);
                _tile_dpbusd(1, 4, 7);
            }
            if constexpr (T > 1) {
                _tile_loadd(5, second_rows + k * tile_bytes, 64);
                _tile_dpbusd(2, 5, 6);
                if constexpr (P > 1) _tile_dpbusd(3, 5, 7);
            }
        }
        _tile_stored(0, out[0][0], 64);
        if constexpr (P > 1) _tile_stored(1, out[0][1], 64);
        if constexpr (T > 1) _tile_stored(2, out[1][0], 64);
        if constexpr (T > 1 && P > 1) _tile_stored(3, out[1][1], 64);
        M3EDGE_SETTLE_MEMORY();
    }
};

}  // namespace

const TransformerKernels* transformer_kernels_amx() { return &kernels_of<Amx>; }

}  // namespace m3edge
#else
const m3edge::TransformerKernels* m3edge::transformer_kernels_amx() { return nullptr; }
#endif
