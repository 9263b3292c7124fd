// Products of codes with NEON: bytes widened to 16 bits, multiplied into 32.
#include "dense_dots.h"

#if defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>

namespace m3edge {
namespace {

void dots_neon(const int8_t* const rows[dot_rows], const int16_t* query, size_t dim, int32_t dots[dot_rows]) {
    int32x4_t sums[dot_rows];
    for (size_t r = 0; r < dot_rows; ++r) sums[r] = vdupq_n_s32(0);
    size_t k = 0;
    for (; k + 8 <= dim; k += 8) {
        const int16x8_t q = vld1q_s16(query + k);
        for (size_t r = 0; r < dot_rows; ++r) {
            const int16x8_t codes = vmovl_s8(vld1_s8(rows[r] + k));
            sums[r] = vmlal_s16(sums[r], vget_low_s16(codes), vget_low_s16(q));
            sums[r] = vmlal_s16(sums[r], vget_high_s16(codes), vget_high_s16(q));
        }
    }
    for (size_t r = 0; r < dot_rows; ++r) {
        dots[r] = vaddvq_s32(sums[r]);
        for (size_t rest = k; rest < dim; ++rest) dots[r] += rows[r][rest] * query[rest];
    }
}

}  // namespace

DotKernel dot_kernel_neon() { return &dots_neon; }

}  // namespace m3edge
#else
m3edge::DotKernel m3edge::dot_kernel_neon() { return nullptr; }
#endif
