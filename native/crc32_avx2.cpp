// CRC-32 by products of polynomials, which every processor with AVX2 has: sixteen bytes are moved over what lies behind them
// without changing the remainder, until only sixteen are left.
#include "crc32.h"

#if defined(__PCLMUL__)
#include <immintrin.h>

namespace m3edge {
namespace {

constexpr size_t vector_bytes = 16, lanes = 4;

// The remainder of x to the power of `exponent`, its bits reflected; shifted, since the product of two reflected numbers
// comes out one bit short.
constexpr uint64_t power(unsigned exponent) {
    uint32_t remainder = 0x80000000u;  // of 1
    for (unsigned i = 0; i < exponent; ++i) remainder = remainder >> 1 ^ (remainder & 1 ? 0xedb88320u : 0u);
    return uint64_t(remainder) << 1;
}

// What sixteen bytes are multiplied by, half by half, to stand `distance` bytes further on.
template <size_t distance>
__m128i over() {
    constexpr uint64_t low = power(8 * distance + 32), high = power(8 * distance - 32);
    return _mm_set_epi64x(int64_t(high), int64_t(low));
}

__m128i moved(__m128i bytes, __m128i over) {
    return _mm_xor_si128(_mm_clmulepi64_si128(bytes, over, 0x00), _mm_clmulepi64_si128(bytes, over, 0x11));
}

__m128i load(const uint8_t* data) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data)); }

uint32_t remainder_avx2(const uint8_t* data, size_t n, uint32_t remainder) {
    if (n < lanes * vector_bytes) return crc32_remainder_plain(data, n, remainder);
    __m128i sums[lanes];
    for (size_t i = 0; i < lanes; ++i) sums[i] = load(data + i * vector_bytes);
    sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128(int(remainder)));
    data += lanes * vector_bytes;
    n -= lanes * vector_bytes;
    const __m128i over_all = over<lanes * vector_bytes>(), over_one = over<vector_bytes>();
    for (; n >= lanes * vector_bytes; n -= lanes * vector_bytes, data += lanes * vector_bytes)
        for (size_t i = 0; i < lanes; ++i)
            sums[i] = _mm_xor_si128(moved(sums[i], over_all), load(data + i * vector_bytes));
    __m128i sum = sums[0];
    for (size_t i = 1; i < lanes; ++i) sum = _mm_xor_si128(moved(sum, over_one), sums[i]);
    for (; n >= vector_bytes; n -= vector_bytes, data += vector_bytes)
        sum = _mm_xor_si128(moved(sum, over_one), load(data));
    alignas(vector_bytes) uint8_t left[vector_bytes];
    _mm_store_si128(reinterpret_cast<__m128i*>(left), sum);
    return crc32_remainder_plain(data, n, crc32_remainder_plain(left, vector_bytes, 0));
}

}  // namespace

RemainderKernel crc32_remainder_avx2() { return &remainder_avx2; }

}  // namespace m3edge
#else
m3edge::RemainderKernel m3edge::crc32_remainder_avx2() { return nullptr; }
#endif
