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
    // All four sums across lanes at once: by halves, then neighbours of two rows in turn.
    static_assert(dot_rows == 4, "as many as the result has lanes");
    __m256i halves[dot_rows];
    for (size_t r = 0; r < dot_rows; ++r)
        halves[r] = _mm256_add_epi32(_mm512_castsi512_si256(sums[r]), _mm512_extracti64x4_epi64(sums[r], 1));
    const __m256i pairs =
        _mm256_hadd_epi32(_mm256_hadd_epi32(halves[0], halves[1]), _mm256_hadd_epi32(halves[2], halves[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dots),
                     _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}

}  // namespace

DotKernel dot_kernel_avx512vnni() { return &dots_avx512vnni; }

}  // namespace m3edge
#else
m3edge::DotKernel m3edge::dot_kernel_avx512vnni() { return nullptr; }
#endif
