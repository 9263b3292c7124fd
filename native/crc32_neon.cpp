// CRC-32 by ARM's own instruction for it.
#include "crc32.h"

#if defined(__ARM_FEATURE_CRC32) && defined(__aarch64__)
#include <arm_acle.h>

#include <cstring>

namespace m3edge {
namespace {

uint32_t remainder_neon(const uint8_t* data, size_t n, uint32_t remainder) {
    for (; n >= 8; n -= 8, data += 8) {
        uint64_t bytes;
        std::memcpy(&bytes, data, sizeof bytes);
        remainder = __crc32d(remainder, bytes);
    }
    for (; n > 0; --n) remainder = __crc32b(remainder, *data++);
    return remainder;
}

}  // namespace

RemainderKernel crc32_remainder_neon() { return &remainder_neon; }

}  // namespace m3edge
#else
m3edge::RemainderKernel m3edge::crc32_remainder_neon() { return nullptr; }
#endif
