// The tile product with AVX-VNNI, the 256-bit form that Intel's client processors have.
#include "maxsim_tile.h"

#if defined(__AVXVNNI__) && defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

namespace m3edge {
namespace {

struct Vnni256 {
    using Register = __m256i;
    using Query = __m256i;
    static constexpr int lanes = 8, groups = 2, rows = 6, offset = 128;  // 12 sums, 2 of the query, 1 of the document

    static M3EDGE_INLINE Register zero() { return _mm256_setzero_si256(); }
    static M3EDGE_INLINE Query load_query(const uint8_t* bytes) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    }
    static M3EDGE_INLINE Register broadcast(const int8_t* bytes) {
        int32_t four;
        std::memcpy(&four, bytes, 4);
        return _mm256_set1_epi32(four);
    }
    static M3EDGE_INLINE Register add_dot(Register sum, Query query, Register document) { return _mm256_dpbusd_avx_epi32(sum, query, document); }
    static M3EDGE_INLINE int32_t row_sum(const int8_t* row, size_t width) {
        int32_t sum = 0;
        for (size_t k = 0; k < width; ++k) sum += row[k];
        return sum;
    }
    static M3EDGE_INLINE __m256 scaled(Register sum, int32_t correction, float scale) {
        const Register dot = _mm256_sub_epi32(sum, _mm256_set1_epi32(correction));
        return _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(scale));
    }
    static M3EDGE_INLINE void raise(float* best, __m256 score) {
        _mm256_storeu_ps(best, _mm256_max_ps(score, _mm256_loadu_ps(best)));
    }
};

}  // namespace

const TileKernel* tile_kernel_avxvnni() { return &kernel_of<Vnni256>; }

}  // namespace m3edge
#else
const m3edge::TileKernel* m3edge::tile_kernel_avxvnni() { return nullptr; }
#endif
