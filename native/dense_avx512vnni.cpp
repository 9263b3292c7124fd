// Products of codes with AVX512-VNNI: bytes widened to 16 bits, pairs of products added to a lane by one instruction.
#include "dense_dots.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

namespace m3edge {
namespace {

void dots_avx512vnni(const int8_t* const rows[dot_rows], const int16_t* query, size_t dim, int32_t dots[dot_rows]) {
    __m512i sums[dot_rows];
    for (size_t r = 0; r < dot_rows; ++r) sums[r] = _mm512_setzero_si512();
    size_t k = 0;
    for (; k + 32 <= dim; k += 32) {
        const __m512i q = _mm512_loadu_si512(query + k);
        for (size_t r = 0; r < dot_rows; ++r) {
            const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[r] + k));
            sums[r] = _mm512_dpwssd_epi32(sums[r], _mm512_cvtepi8_epi16(codes), q);
        }
    }
    if (k < dim) {
        const __mmask32 rest = (__mmask32(1) << (dim - k)) - 1;
        const __m512i q = _mm512_maskz_loadu_epi16(rest, query + k);
        for (size_t r = 0; r < dot_rows; ++r) {
            const __m256i codes = _mm256_maskz_loadu_epi8(rest, rows[r] + k);
            sums[r] = _mm512_dpwssd_epi32(sums[r], _mm512_cvtepi8_epi16(codes), q);
        }
    }
    for (size_t r = 0; r < dot_rows; ++r) dots[r] = _mm512_reduce_add_epi32(sums[r]);
}

}  // namespace

DotKernel dot_kernel_avx512vnni() { return &dots_avx512vnni; }

}  // namespace m3edge
#else
m3edge::DotKernel m3edge::dot_kernel_avx512vnni() { return nullptr; }
#endif
