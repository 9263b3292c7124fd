// Products of codes with AVX2: bytes widened to 16 bits, so that pairs of products fit 32 bits without saturation.
#include "dense_dots.h"

#if defined(__AVX2__)
#include <immintrin.h>

namespace m3edge {
namespace {

int32_t sum_lanes(__m256i v) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

void dots_avx2(const int8_t* const rows[dot_rows], const int16_t* query, size_t dim, int32_t dots[dot_rows]) {
    __m256i sums[dot_rows];
    for (size_t r = 0; r < dot_rows; ++r) sums[r] = _mm256_setzero_si256();
    size_t k = 0;
    for (; k + 16 <= dim; k += 16) {
        const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query + k));
        for (size_t r = 0; r < dot_rows; ++r) {
            const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + k));
            sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(_mm256_cvtepi8_epi16(codes), q));
        }
    }
    for (size_t r = 0; r < dot_rows; ++r) {
        dots[r] = sum_lanes(sums[r]);
        for (size_t rest = k; rest < dim; ++rest) dots[r] += rows[r][rest] * query[rest];
    }
}

}  // namespace

DotKernel dot_kernel_avx2() { return &dots_avx2; }

}  // namespace m3edge
#else
m3edge::DotKernel m3edge::dot_kernel_avx2() { return nullptr; }
#endif
