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

int32_t large_count(const BitmapCounts& postings, size_t posting) {
    size_t first = 0;
    for (size_t n = postings.n_large; n > 1;) {
        const size_t half = n / 2;
        if (postings.large_at[first + half] <= posting) first += half;
        n -= half;
    }
    return postings.n_large && postings.large_at[first] == posting ? postings.large_counts[first] : 15;
}

// The counts of sixteen postings, of which n count.
M3EDGE_INLINE __m512i sixteen_counts(const BitmapCounts& postings, size_t posting, unsigned n) {
    const size_t byte = posting / 2, n_bytes = (postings.n_postings + 1) / 2, left = n_bytes - byte;
    const __mmask16 there = left < 16 ? __mmask16((1u << left) - 1) : __mmask16(0xffff);
    const __m128i packed = _mm_maskz_loadu_epi8(there, postings.counts + byte), four = _mm_set1_epi8(15);
    const __m128i even = _mm_and_si128(packed, four), odd = _mm_and_si128(_mm_srli_epi16(packed, 4), four);
    const __m128i first = _mm_unpacklo_epi8(even, odd);
    const __m128i shifted = _mm_alignr_epi8(_mm_unpackhi_epi8(even, odd), first, 1);
    __m512i counts = _mm512_cvtepu8_epi32(posting % 2 ? shifted : first);
    unsigned large = _mm512_cmpeq_epi32_mask(counts, _mm512_set1_epi32(15)) & ((1u << n) - 1);
    if (large) {
        alignas(64) int32_t each[16];
        _mm512_store_si512(each, counts);
        for (; large; large &= large - 1) {
            const unsigned i = unsigned(__builtin_ctz(large));
            each[i] = large_count(postings, posting + i);
        }
        counts = _mm512_load_si512(each);
    }
    return counts;
}

void add_counts(const BitmapCounts& postings, uint32_t factor, int32_t* sums) {
    const Factor factors(factor);
    const __m512 full = _mm512_set1_ps(65535.0f);
    size_t posting = postings.posting;
    for (size_t i = 0; i < postings.n; i += 16) {
        const unsigned bits = postings.bits[i / 16], n = unsigned(__builtin_popcount(bits));
        if (n == 0) continue;
        const __m512i counts = _mm512_maskz_expand_epi32(__mmask16(bits), sixteen_counts(postings, posting, n));
        const __m512 frequencies = _mm512_cvtepi32_ps(counts), norms = _mm512_maskz_loadu_ps(__mmask16(bits), postings.norms + i);
        const __m512 parts = _mm512_div_ps(_mm512_mul_ps(full, frequencies), _mm512_add_ps(frequencies, norms));
        __mmask16 is_part = _mm512_cmp_ps_mask(parts, _mm512_setzero_ps(), _CMP_GE_OQ);  // whatever the norm is
        is_part = _mm512_mask_cmp_ps_mask(is_part, parts, full, _CMP_LT_OQ);
        const __m512i whole = _mm512_mask_cvttps_epi32(_mm512_set1_epi32(65535), is_part, parts);
        const __m512i added = factors.times(_mm512_maskz_mov_epi32(__mmask16(bits), whole));
        _mm512_storeu_si512(sums + i, _mm512_add_epi32(added, _mm512_loadu_si512(sums + i)));
        posting += n;
    }
}

constexpr PostingKernels kernels = {10, &collect, &add, &add_counts};

}  // namespace

const PostingKernels* posting_kernels_avx512() { return &kernels; }

}  // namespace m3edge
#else
const m3edge::PostingKernels* m3edge::posting_kernels_avx512() { return nullptr; }
#endif
