// The tile product with AVX2. Its byte product adds neighbours in 16 bits and saturates; |q| times d with q's sign
// cannot: 2 * 127 * 127 fits. So the query stays signed and its sign is moved to the document.
#include "maxsim_tile.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

#include <cstring>

namespace m3edge {
namespace {

struct Avx2 {
    using Register = __m256i;
    struct Query {
        __m256i signs, magnitudes;
    };
    static constexpr int lanes = 8, groups = 2, rows = 4, offset = 0;  // 8 sums, 4 of the query, 1 of the document

    static M3EDGE_INLINE Register zero() { return _mm256_setzero_si256(); }
    static M3EDGE_INLINE Query load_query(const uint8_t* bytes) {
        const __m256i query = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
        return {query, _mm256_abs_epi8(query)};
    }
    static M3EDGE_INLINE Register broadcast(const int8_t* bytes) {
        int32_t four;
        std::memcpy(&four, bytes, 4);
        return _mm256_set1_epi32(four);
    }
    static M3EDGE_INLINE Register add_dot(Register sum, Query query, Register document) {
        const __m256i pairs = _mm256_maddubs_epi16(query.magnitudes, _mm256_sign_epi8(document, query.signs));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static M3EDGE_INLINE __m256 scaled(Register sum, int32_t, float scale) {
        return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scale));
    }
    static M3EDGE_INLINE void raise(float* best, __m256 score) {
        _mm256_storeu_ps(best, _mm256_max_ps(score, _mm256_loadu_ps(best)));
    }
};

struct Floats256 {
    using Register = __m256;
    using Query = __m256;
    static constexpr int lanes = 8, groups = 2, rows = 6, offset = 0;  // 12 sums, 2 of the query, 1 of the document

    static M3EDGE_INLINE Register zero() { return _mm256_setzero_ps(); }
    static M3EDGE_INLINE Query load_query(const uint8_t* bytes) { return _mm256_loadu_ps(reinterpret_cast<const float*>(bytes)); }
    static M3EDGE_INLINE Register broadcast(const int8_t* bytes) {
        float one;
        std::memcpy(&one, bytes, sizeof one);
        return _mm256_set1_ps(one);
    }
    static M3EDGE_INLINE Register add_dot(Register sum, Query query, Register document) { return _mm256_fmadd_ps(query, document, sum); }
    static M3EDGE_INLINE __m256 scaled(Register sum, int32_t, float) { return sum; }
    static M3EDGE_INLINE void raise(float* best, __m256 score) {
        _mm256_storeu_ps(best, _mm256_max_ps(score, _mm256_loadu_ps(best)));
    }
    static M3EDGE_INLINE void widen(const uint8_t* halves, float* out) {
        _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves))));
    }
};

}  // namespace

const TileKernel* tile_kernel_avx2() { return &kernel_of<Avx2>; }
const FloatKernel* float_kernel_avx2() { return &float_kernel_of<Floats256>; }

}  // namespace m3edge
#else
const m3edge::TileKernel* m3edge::tile_kernel_avx2() { return nullptr; }
const m3edge::FloatKernel* m3edge::float_kernel_avx2() { return nullptr; }
#endif
