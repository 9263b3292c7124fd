// The tile product with NEON's dot product (ARMv8.2, all Apple chips): four signed bytes a lane, four lanes.
#include "maxsim_tile.h"

#if defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#include <cstring>

namespace m3edge {
namespace {

struct Neon {
    using Register = int32x4_t;
    using Query = int8x16_t;
    static constexpr int lanes = 4, groups = 4, rows = 4, offset = 0;  // 16 sums, 4 of the query, 1 of the document

    static M3EDGE_INLINE Register zero() { return vdupq_n_s32(0); }
    static M3EDGE_INLINE Query load_query(const uint8_t* bytes) { return vld1q_s8(reinterpret_cast<const int8_t*>(bytes)); }
    static M3EDGE_INLINE Register broadcast(const int8_t* bytes) {
        int32_t four;
        std::memcpy(&four, bytes, 4);
        return vdupq_n_s32(four);
    }
    static M3EDGE_INLINE Register add_dot(Register sum, Query query, Register document) {
        return vdotq_s32(sum, query, vreinterpretq_s8_s32(document));
    }
    static M3EDGE_INLINE float32x4_t scaled(Register sum, int32_t, float scale) { return vmulq_n_f32(vcvtq_f32_s32(sum), scale); }
    static M3EDGE_INLINE void raise(float* best, float32x4_t score) { vst1q_f32(best, vmaxq_f32(score, vld1q_f32(best))); }
};

struct NeonFloats {
    using Register = float32x4_t;
    using Query = float32x4_t;
    static constexpr int lanes = 4, groups = 4, rows = 5, offset = 0;  // 20 sums, 4 of the query, 1 of the document

    static M3EDGE_INLINE Register zero() { return vdupq_n_f32(0); }
    static M3EDGE_INLINE Query load_query(const uint8_t* bytes) { return vld1q_f32(reinterpret_cast<const float*>(bytes)); }
    static M3EDGE_INLINE Register broadcast(const int8_t* bytes) {
        float one;
        std::memcpy(&one, bytes, sizeof one);
        return vdupq_n_f32(one);
    }
    static M3EDGE_INLINE Register add_dot(Register sum, Query query, Register document) { return vfmaq_f32(sum, query, document); }
    static M3EDGE_INLINE float32x4_t scaled(Register sum, int32_t, float) { return sum; }
    static M3EDGE_INLINE void raise(float* best, float32x4_t score) { vst1q_f32(best, vmaxq_f32(score, vld1q_f32(best))); }
    static M3EDGE_INLINE void widen(const uint8_t* halves, float* out) {
        uint16x4_t four;
        std::memcpy(&four, halves, sizeof four);
        vst1q_f32(out, vcvt_f32_f16(vreinterpret_f16_u16(four)));
    }
};

}  // namespace

const TileKernel* tile_kernel_neon() { return &kernel_of<Neon>; }
const FloatKernel* float_kernel_neon() { return &float_kernel_of<NeonFloats>; }

}  // namespace m3edge
#else
const m3edge::TileKernel* m3edge::tile_kernel_neon() { return nullptr; }
const m3edge::FloatKernel* m3edge::float_kernel_neon() { return nullptr; }
#endif
