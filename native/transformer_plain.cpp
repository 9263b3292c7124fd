// The product of bytes in plain C++: what runs where no other does, and what the others are measured by.
#include "transformer_steps.h"

#if defined(__GNUC__)

namespace m3edge {
namespace {

struct Plain {
    struct Register {
        int32_t of[4];
    };
    struct Row {
        uint8_t of[4];
    };
    static constexpr size_t outputs = 4, rows = 2, panels = 1;

    static M3EDGE_INLINE Row broadcast(int32_t four) { return load<Row>(&four); }
    static M3EDGE_INLINE Register add_dot(Register sum, Row row, Register weights) {
        int8_t bytes[16];
        __builtin_memcpy(bytes, &weights, sizeof bytes);
        for (size_t output = 0; output < outputs; ++output)
            for (size_t k = 0; k < 4; ++k) sum.of[output] += int32_t(row.of[k]) * bytes[output * 4 + k];
        return sum;
    }
};

}  // namespace

const TransformerKernels* transformer_kernels_plain() { return &kernels_of<InRegisters<Plain>, 0, SinglePrecision>; }

}  // namespace m3edge
#else
const m3edge::TransformerKernels* m3edge::transformer_kernels_plain() { return nullptr; }
#endif
