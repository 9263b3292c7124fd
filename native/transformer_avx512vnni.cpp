// Products with AVX512-VNNI, sixteen lanes: four unsigned times signed bytes a lane and instruction, or two 16-bit numbers.
#include "transformer_kernels.h"

#if defined(__GNUC__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

#include "transformer_steps.h"

namespace m3edge {
namespace {

struct Vnni512 {
    using Register = __m512i;
    using Row = __m512i;
    static constexpr size_t outputs = 16, rows = 8, panels = 3;  // 24 sums, 3 of weights, 1 of a row

    static M3EDGE_INLINE Row broadcast(int32_t four) { return _mm512_set1_epi32(four); }
    static M3EDGE_INLINE Register add_dot(Register sum, Row row, Register weights) {
        return _mm512_dpbusd_epi32(sum, row, weights);
    }
};

struct Vnni512Words : Vnni512 {
    static constexpr size_t rows = 6, panels = 4;  // 24 sums again, in four panels as a head of 64 has

    static M3EDGE_INLINE Register add_dot(Register sum, Row row, Register weights) {
        return _mm512_dpwssd_epi32(sum, row, weights);
    }
};

}  // namespace

const TransformerKernels* transformer_kernels_avx512vnni() {
    return &kernels_of<InRegisters<Vnni512>, 0, WholeNumbers<Vnni512Words>>;
}

}  // namespace m3edge
#else
const m3edge::TransformerKernels* m3edge::transformer_kernels_avx512vnni() { return nullptr; }
#endif
