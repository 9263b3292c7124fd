// Sums above a limit, sixteen to a comparison; their numbers are packed together without a branch,
// found or not: which sixteen have any cannot be foreseen.
#include "postings_collect.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

namespace m3edge {
namespace {

size_t collect(const int32_t* sums, const bool* allowed, size_t n, int32_t limit, uint16_t* out) {
    const __m512i limits = _mm512_set1_epi32(limit), step = _mm512_set1_epi32(int(collect_step));
    __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t found = 0;
    for (size_t i = 0; i < n; i += collect_step, numbers = _mm512_add_epi32(numbers, step)) {
        unsigned above = _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(sums + i), limits);
        const __m128i flags = _mm_loadu_si128(reinterpret_cast<const __m128i*>(allowed + i));
        above &= _mm_test_epi8_mask(flags, flags);
        const __m512i packed = _mm512_maskz_compress_epi32(__mmask16(above), numbers);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + found), _mm512_maskz_cvtepi32_epi16(0xffff, packed));
        found += unsigned(__builtin_popcount(above));
    }
    return found;
}

}  // namespace

Collect collect_avx512() { return &collect; }

}  // namespace m3edge
#else
m3edge::Collect m3edge::collect_avx512() { return nullptr; }
#endif
