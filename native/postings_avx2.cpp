// Sums above a limit, eight to a comparison.
#include "postings_collect.h"

#if defined(__AVX2__)
#include <immintrin.h>

namespace m3edge {
namespace {

size_t collect(const int32_t* sums, const bool* allowed, size_t n, int32_t limit, uint16_t* out) {
    const __m256i limits = _mm256_set1_epi32(limit);
    size_t found = 0;
    for (size_t i = 0; i < n; i += collect_step) {
        unsigned above = 0;
        for (int half = 0; half < 2; ++half) {
            const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + i + 8 * half));
            const int bits = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(eight, limits)));
            above |= unsigned(bits) << (8 * half);
        }
        if (!above) continue;
        const __m128i flags = _mm_loadu_si128(reinterpret_cast<const __m128i*>(allowed + i));
        above &= unsigned(_mm_movemask_epi8(_mm_cmpgt_epi8(flags, _mm_setzero_si128())));
        for (; above; above &= above - 1) out[found++] = uint16_t(i + unsigned(__builtin_ctz(above)));
    }
    return found;
}

}  // namespace

Collect collect_avx2() { return &collect; }

}  // namespace m3edge
#else
m3edge::Collect m3edge::collect_avx2() { return nullptr; }
#endif
