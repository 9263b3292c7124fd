// Products with AVX-VNNI, the 256-bit form that Intel's client processors have.
#include "transformer_kernels.h"

#if defined(__GNUC__) && defined(__AVXVNNI__) && defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "transformer_steps.h"

namespace m3edge {
namespace {

struct Vnni256 {
    using Register = __m256i;
    using Row = __m256i;
    static constexpr size_t outputs = 8, rows = 6, panels = 1;  // 12 sums, 2 of weights, 1 of a row

    static M3EDGE_INLINE Row broadcast(int32_t four) { return _mm256_set1_epi32(four); }
    static M3EDGE_INLINE Register add_dot(Register sum, Row row, Register weights) {
        return _mm256_dpbusd_avx_epi32(sum, row, weights);
    }
};

struct Vnni256Words : Vnni256 {
    static M3EDGE_INLINE Register add_dot(Register sum, Row row, Register weights) {
        return _mm256_dpwssd_avx_epi32(sum, row, weights);
    }
};

}  // namespace

const TransformerKernels* transformer_kernels_avxvnni() {
    return &kernels_of<InRegisters<Vnni256>, 0, WholeNumbers<Vnni256Words>>;
}

}  // namespace m3edge
#else
const m3edge::TransformerKernels* m3edge::transformer_kernels_avxvnni() { return nullptr; }
#endif
