// The product of bytes with NEON's dot product (ARMv8.2, all Apple chips): four signed bytes a lane, four lanes.
#include "transformer_kernels.h"

#if defined(__GNUC__) && defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#include "transformer_steps.h"

namespace m3edge {
namespace {

struct Neon {
    using Register = int32x4_t;
    using Row = int8x16_t;
    static constexpr size_t outputs = 4, rows = 6, panels = 1;  // 24 sums, 4 of weights, 1 of a row

    static M3EDGE_INLINE Row broadcast(int32_t four) {
        return veorq_s8(vreinterpretq_s8_s32(vdupq_n_s32(four)), vdupq_n_s8(-128));
    }
    static M3EDGE_INLINE Register add_dot(Register sum, Row row, Register weights) {
        return vdotq_s32(sum, vreinterpretq_s8_s32(weights), row);
    }
};

}  // namespace

const TransformerKernels* transformer_kernels_neon() { return &kernels_of<InRegisters<Neon>, 128, SinglePrecision>; }

}  // namespace m3edge
#else
const m3edge::TransformerKernels* m3edge::transformer_kernels_neon() { return nullptr; }
#endif
