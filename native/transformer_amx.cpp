// Products with AMX: a tile of rows by a panel in one instruction, of bytes or of bfloat16.
#include "transformer_kernels.h"

#if defined(__GNUC__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__)
#include <immintrin.h>

#include "amx.h"
#include "transformer_steps.h"

namespace m3edge {
namespace {

// The instructions' tiles are constants: they must be in the text.
#define M3EDGE_MULTIPLY_TILES(sums, rows, panel) \
    do {                                         \
        if constexpr (of_bytes)                  \
            _tile_dpbusd(sums, rows, panel);     \
        else                                     \
            _tile_dpbf16ps(sums, rows, panel);   \
    } while (false)

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 panels.
template <bool of_bytes>
struct Amx {
    static constexpr size_t tiles = 2, panels = 2;

    static void begin() {
        const TileLayout layout;
        _tile_loadconfig(&layout);
    }
    static void end() { _tile_release(); }

    template <size_t T, size_t P>
    static M3EDGE_INLINE void sums(const uint8_t* rows, const uint8_t* weights, size_t k_blocks, int32_t* out, size_t stride) {
        const uint8_t* second_rows = rows + k_blocks * tile_bytes;
        const uint8_t* second_weights = weights + k_blocks * panel_bytes;
        _tile_zero(0);
        if constexpr (P > 1) _tile_zero(1);
        if constexpr (T > 1) _tile_zero(2);
        if constexpr (T > 1 && P > 1) _tile_zero(3);
        M3EDGE_SETTLE_MEMORY();
        for (size_t k = 0; k < k_blocks; ++k) {
            _tile_loadd(6, weights + k * panel_bytes, 64);
            _tile_loadd(4, rows + k * tile_bytes, 64);
            M3EDGE_MULTIPLY_TILES(0, 4, 6);
            if constexpr (P > 1) {
                _tile_loadd(7, second_weights + k * panel_bytes, 64);
                M3EDGE_MULTIPLY_TILES(1, 4, 7);
            }
            if constexpr (T > 1) {
                _tile_loadd(5, second_rows + k * tile_bytes, 64);
                M3EDGE_MULTIPLY_TILES(2, 5, 6);
                if constexpr (P > 1) M3EDGE_MULTIPLY_TILES(3, 5, 7);
            }
        }
        int32_t* second_out = out + tile_rows * stride;
        _tile_stored(0, out, stride * 4);
        if constexpr (P > 1) _tile_stored(1, out + panel_width, stride * 4);
        if constexpr (T > 1) _tile_stored(2, second_out, stride * 4);
        if constexpr (T > 1 && P > 1) _tile_stored(3, second_out + panel_width, stride * 4);
        M3EDGE_SETTLE_MEMORY();
    }
};

struct BrainFloats : Unscaled {
    using Element = uint16_t;
    using Products = Amx<false>;

    static M3EDGE_INLINE void put(Element* to, Floats x) { store(to, _mm512_cvtneps_pbh((__m512)x)); }
};

}  // namespace

const TransformerKernels* transformer_kernels_amx() { return &kernels_of<Amx<true>, 0, BrainFloats>; }

}  // namespace m3edge
#else
const m3edge::TransformerKernels* m3edge::transformer_kernels_amx() { return nullptr; }
#endif
