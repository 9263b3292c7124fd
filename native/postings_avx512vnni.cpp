// Sixteen documents to an instruction. What is found, or has a bit, is packed and spread without a branch: which sixteen
// have any cannot be foreseen.
#include "postings_kernels.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

#include "inline.h"

namespace m3edge {
namespace {

size_t collect(const int32_t* sums, const bool* allowed, size_t n, int32_t limit, uint32_t* out) {
    const __m512i limits = _mm512_set1_epi32(limit), step = _mm512_set1_epi32(16);
    __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t found = 0;
    for (size_t i = 0; i < n; i += collect_step) {
        const __m512i flags = _mm512_loadu_si512(allowed + i);
        const uint64_t may = _mm512_test_epi8_mask(flags, flags);
        for (size_t k = 0; k < collect_step; k += 16, numbers = _mm512_add_epi32(numbers, step)) {
            const __m512i sixteen = _mm512_loadu_si512(sums + i + k);
            const __mmask16 above = _mm512_mask_cmpgt_epi32_mask(__mmask16(may >> k), sixteen, limits);
            _mm512_storeu_si512(out + found, _mm512_maskz_compress_epi32(above, numbers));
            found += unsigned(__builtin_popcount(above));
        }
    }
    return found;
}

struct Factor {
    __m512i high, low;

    explicit Factor(uint32_t factor)
        : high(_mm512_set1_epi32(int(factor >> 16))), low(_mm512_set1_epi32(int(factor & 0xffff))) {}
    // factor * weight / 65536 is high * weight and a fraction, low * weight / 65536.
    M3EDGE_INLINE __m512i times(__m512i weights) const {
        return _mm512_add_epi32(_mm512_mullo_epi32(weights, high), _mm512_mulhi_epu16(weights, low));
    }
};

M3EDGE_INLINE void add_sixteen(__mmask16 bits, __m256i weights, const Factor& factor, int32_t* sums) {
    const __m512i spread = _mm512_maskz_expand_epi32(bits, _mm512_cvtepu16_epi32(weights));
    _mm512_storeu_si512(sums, _mm512_add_epi32(factor.times(spread), _mm512_loadu_si512(sums)));
}

void add(const BitmapPostings& postings, uint32_t factor, int32_t* sums) {
    const Factor factors(factor);
    const uint16_t* weights = postings.weights;
    for (size_t i = 0; i < postings.n; i += 16) {
        const unsigned bits = postings.bits[i / 16], found = unsigned(__builtin_popcount(bits));
        const __m256i* at = reinterpret_cast<const __m256i*>(weights);
        const __m256i next = postings.weights_end - weights >= 16
                                 ? _mm256_loadu_si256(at)
                                 : _mm256_maskz_loadu_epi16(__mmask16((1u << found) - 1), at);
        add_sixteen(__mmask16(bits), next, factors, sums + i);
        weights += found;
    }
}

constexpr PostingKernels kernels = {&collect, &add};

}  // namespace

const PostingKernels* posting_kernels_avx512() { return &kernels; }

}  // namespace m3edge
#else
const m3edge::PostingKernels* m3edge::posting_kernels_avx512() { return nullptr; }
#endif
