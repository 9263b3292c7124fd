// What files for AMX share: the tiles' layout, of 16 rows by 64 bytes each.
#pragma once

#include <cstdint>

namespace m3edge {
namespace {

// The operand of LDTILECFG.
struct alignas(64) TileLayout {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace
}  // namespace m3edge

// The compilers' tile instructions do not say that they read memory: what was written must be there before.
#define M3EDGE_SETTLE_MEMORY() __asm__ volatile("" ::: "memory")
