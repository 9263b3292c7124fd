// The tile product with AVX512-VNNI: four unsigned times signed bytes a lane and instruction, sixteen lanes.
#include "maxsim_tile.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

#include <cstring>

namespace m3edge {
namespace {

struct Vnni512 {
    using Register = __m512i;
    using Query = __m512i;
    static constexpr int lanes = 16, groups = 2, rows = 12, offset = 128;  // 24 sums, 2 of the query, 1 of the document

    static M3EDGE_INLINE Register zero() { return _mm512_setzero_si512(); }
    static M3EDGE_INLINE Query load_query(const uint8_t* bytes) { return _mm512_loadu_si512(bytes); }
    static M3EDGE_INLINE Register broadcast(const int8_t* bytes) {
        int32_t four;
        std::memcpy(&four, bytes, 4);
        return _mm512_set1_epi32(four);
    }
    static M3EDGE_INLINE Register add_dot(Register sum, Query query, Register document) { return _mm512_dpbusd_epi32(sum, query, document); }
    static M3EDGE_INLINE int32_t row_sum(const int8_t* row, size_t width) {
        const __m512i ones = _mm512_set1_epi8(1);
        __m512i sum = _mm512_setzero_si512();
        size_t k = 0;
        for (; k + 64 <= width; k += 64) sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(row + k));
        if (k < width) {
            const __mmask64 rest = (__mmask64(1) << (width - k)) - 1;
            sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(rest, row + k));
        }
        return _mm512_reduce_add_epi32(sum);
    }
    static M3EDGE_INLINE __m512 scaled(Register sum, int32_t correction, float scale) {
        const Register dot = _mm512_sub_epi32(sum, _mm512_set1_epi32(correction));
        return _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(scale));
    }
    static M3EDGE_INLINE void raise(float* best, __m512 score) {
        _mm512_storeu_ps(best, _mm512_max_ps(score, _mm512_loadu_ps(best)));
    }
};

struct Floats512 {
    using Register = __m512;
    using Query = __m512;
    static constexpr int lanes = 16, groups = 2, rows = 12, offset = 0;  // 24 sums, 2 of the query, 1 of the document

    static M3EDGE_INLINE Register zero() { return _mm512_setzero_ps(); }
    static M3EDGE_INLINE Query load_query(const uint8_t* bytes) { return _mm512_loadu_ps(reinterpret_cast<const float*>(bytes)); }
    static M3EDGE_INLINE Register broadcast(const int8_t* bytes) {
        float one;
        std::memcpy(&one, bytes, sizeof one);
        return _mm512_set1_ps(one);
    }
    static M3EDGE_INLINE Register add_dot(Register sum, Query query, Register document) { return _mm512_fmadd_ps(query, document, sum); }
    static M3EDGE_INLINE __m512 scaled(Register sum, int32_t, float) { return sum; }
    static M3EDGE_INLINE void raise(float* best, __m512 score) {
        _mm512_storeu_ps(best, _mm512_max_ps(score, _mm512_loadu_ps(best)));
    }
    static M3EDGE_INLINE void widen(const uint8_t* halves, float* out) {
        _mm512_storeu_ps(out, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves))));
    }
};

}  // namespace

const TileKernel* tile_kernel_avx512vnni() { return &kernel_of<Vnni512>; }
const FloatKernel* float_kernel_avx512vnni() { return &float_kernel_of<Floats512>; }

}  // namespace m3edge
#else
const m3edge::TileKernel* m3edge::tile_kernel_avx512vnni() { return nullptr; }
const m3edge::FloatKernel* m3edge::float_kernel_avx512vnni() { return nullptr; }
#endif
