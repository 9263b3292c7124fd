#include "crc32.h"

#include <cstring>

#include "cpu.h"

namespace m3edge {
namespace {

constexpr size_t step = 8;  // bytes at once

// of[i][byte]: the remainder of a byte with i zero bytes behind it.
struct Tables {
    uint32_t of[step][256];

    constexpr Tables() : of() {
        for (uint32_t byte = 0; byte < 256; ++byte) {
            uint32_t remainder = byte;
            for (int bit = 0; bit < 8; ++bit) remainder = remainder >> 1 ^ (remainder & 1 ? 0xedb88320u : 0u);
            of[0][byte] = remainder;
        }
        for (size_t i = 1; i < step; ++i)
            for (uint32_t byte = 0; byte < 256; ++byte) of[i][byte] = of[i - 1][byte] >> 8 ^ of[0][of[i - 1][byte] & 255];
    }
};
constexpr Tables tables;

}  // namespace

uint32_t crc32_remainder_plain(const uint8_t* data, size_t n, uint32_t remainder) {
    for (; n >= step; n -= step, data += step) {
        uint32_t first, second;  // little-endian, as every processor that m3edge is built for
        std::memcpy(&first, data, 4);
        std::memcpy(&second, data + 4, 4);
        first ^= remainder;
        remainder = 0;
        for (size_t i = 0; i < 4; ++i) {
            remainder ^= tables.of[7 - i][first >> 8 * i & 255];
            remainder ^= tables.of[3 - i][second >> 8 * i & 255];
        }
    }
    for (; n > 0; --n) remainder = remainder >> 8 ^ tables.of[0][(remainder ^ *data++) & 255];
    return remainder;
}

uint32_t crc32(const uint8_t* data, size_t n, uint32_t start) {
    const RemainderKernel kernel = Kernels<RemainderKernel>{&crc32_remainder_plain, crc32_remainder_avx2(), nullptr,
                                                            nullptr, nullptr, crc32_remainder_neon()}
                                       .in_use();
    return ~kernel(data, n, ~start);
}

}  // namespace m3edge
