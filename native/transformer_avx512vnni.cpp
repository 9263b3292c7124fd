// The product of bytes with AVX512-VNNI: four unsigned times signed bytes a lane and instruction, sixteen lanes.
#include "transformer_kernels.h"

#if defined(__GNUC__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

#include "transformer_registers.h"

namespace m3edge {
namespace {

struct Vnni512 {
    using Register = __m512i;
    using Row = __m512i;
    static constexpr size_t outputs = 16, rows = 8, panels = 3;  // 24 sums, 3 of weights, 1 of a row
    static constexpr int32_t offset = 0;

    static M3EDGE_INLINE Row broadcast(int32_t four) { return _mm512_set1_epi32(four); }
    static M3EDGE_INLINE Register add_dot(Register sum, Row row, Register weights) {
        return _mm512_dpbusd_epi32(sum, row, weights);
    }
};

}  // namespace

const TransformerKernels* transformer_kernels_avx512vnni() { return &kernels_of<InRegisters<Vnni512>>; }

}  // namespace m3edge
#else
const m3edge::TransformerKernels* m3edge::transformer_kernels_avx512vnni() { return nullptr; }
#endif
