// The product of bytes with AVX2, which adds neighbours in 16 bits and saturates: |x| times w with x's sign cannot, since
// 2 * 128 * 127 fits.
#include "transformer_kernels.h"

#if defined(__GNUC__) && defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "transformer_steps.h"

namespace m3edge {
namespace {

struct Avx2 {
    using Register = __m256i;
    struct Row {
        __m256i signs, magnitudes;
    };
    static constexpr size_t outputs = 8, rows = 4, panels = 1;  // 8 sums, 2 of weights, 2 of a row

    static M3EDGE_INLINE Row broadcast(int32_t four) {
        const __m256i row = _mm256_xor_si256(_mm256_set1_epi32(four), _mm256_set1_epi8(-128));
        return {row, _mm256_abs_epi8(row)};
    }
    static M3EDGE_INLINE Register add_dot(Register sum, Row row, Register weights) {
        const __m256i pairs = _mm256_maddubs_epi16(row.magnitudes, _mm256_sign_epi8(weights, row.signs));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

}  // namespace

const TransformerKernels* transformer_kernels_avx2() { return &kernels_of<InRegisters<Avx2>, 128, SinglePrecision>; }

}  // namespace m3edge
#else
const m3edge::TransformerKernels* m3edge::transformer_kernels_avx2() { return nullptr; }
#endif
