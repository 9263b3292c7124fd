// Eight documents to an instruction.
#include "postings_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>

namespace m3edge {
namespace {

size_t collect(const int32_t* sums, const bool* allowed, size_t n, int32_t limit, uint32_t* out) {
    const __m256i limits = _mm256_set1_epi32(limit);
    size_t found = 0;
    for (size_t i = 0; i < n; i += 16) {
        unsigned above = 0;
        for (int half = 0; half < 2; ++half) {
            const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + i + 8 * half));
            const int bits = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(eight, limits)));
            above |= unsigned(bits) << (8 * half);
        }
        if (!above) continue;
        const __m128i flags = _mm_loadu_si128(reinterpret_cast<const __m128i*>(allowed + i));
        above &= unsigned(_mm_movemask_epi8(_mm_cmpgt_epi8(flags, _mm_setzero_si128())));
        for (; above; above &= above - 1) out[found++] = uint32_t(i) + unsigned(__builtin_ctz(above));
    }
    return found;
}

// For each pattern of eight bits the shuffle that moves the first numbers to the bits that are set, and 0 elsewhere.
struct Spreads {
    alignas(16) uint8_t of[256][16];

    constexpr Spreads() : of() {
        for (unsigned pattern = 0; pattern < 256; ++pattern)
            for (unsigned bit = 0, next = 0; bit < 8; ++bit) {
                const bool is_set = pattern >> bit & 1;
                of[pattern][2 * bit] = is_set ? uint8_t(2 * next) : 0x80;
                of[pattern][2 * bit + 1] = is_set ? uint8_t(2 * next + 1) : 0x80;
                next += is_set;
            }
    }
};
constexpr Spreads spreads;

void add(const BitmapPostings& postings, uint32_t factor, int32_t* sums) {
    const __m256i high = _mm256_set1_epi32(int(factor >> 16)), low = _mm256_set1_epi32(int(factor & 0xffff));
    const uint16_t* weights = postings.weights;
    for (size_t i = 0; i < postings.n; i += 16) {
        const unsigned bits = postings.bits[i / 16], found = unsigned(__builtin_popcount(bits));
        const unsigned halves[2] = {bits & 0xff, bits >> 8};
        const uint16_t* from[2] = {weights, weights + __builtin_popcount(halves[0])};
        uint16_t last[24];
        if (postings.weights_end - weights < 24) {  // eight are read from wherever a half begins
            for (unsigned k = 0; k < found; ++k) last[k] = weights[k];
            from[1] = last + (from[1] - weights);
            from[0] = last;
        }
        for (int half = 0; half < 2; ++half) {
            const __m128i next = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[half]));
            const __m128i spread = _mm_load_si128(reinterpret_cast<const __m128i*>(spreads.of[halves[half]]));
            const __m256i wide = _mm256_cvtepu16_epi32(_mm_shuffle_epi8(next, spread));
            // factor * weight / 65536 is high * weight and a fraction, low * weight / 65536.
            const __m256i parts = _mm256_add_epi32(_mm256_mullo_epi32(wide, high), _mm256_mulhi_epu16(wide, low));
            __m256i* at = reinterpret_cast<__m256i*>(sums + i + 8 * half);
            _mm256_storeu_si256(at, _mm256_add_epi32(parts, _mm256_loadu_si256(at)));
        }
        weights += found;
    }
}

constexpr PostingKernels kernels = {5, &collect, &add, nullptr};

}  // namespace

const PostingKernels* posting_kernels_avx2() { return &kernels; }

}  // namespace m3edge
#else
const m3edge::PostingKernels* m3edge::posting_kernels_avx2() { return nullptr; }
#endif
