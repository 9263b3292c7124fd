// CRC-32 as zlib computes it (polynomial 0xEDB88320, bits reflected): what the index's files are compared with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace m3edge {

// The checksum of what `start` is the checksum of, with n bytes behind it; of nothing it is 0.
uint32_t crc32(const uint8_t* data, size_t n, uint32_t start = 0);

// The remainder without the inversion that crc32() begins and ends with: what kernels work on.
using RemainderKernel = uint32_t (*)(const uint8_t* data, size_t n, uint32_t remainder);

uint32_t crc32_remainder_plain(const uint8_t* data, size_t n, uint32_t remainder);

// nullptr where the compiler could not build it.
RemainderKernel crc32_remainder_avx2();
RemainderKernel crc32_remainder_neon();

}  // namespace m3edge
