// The tile product in plain C++: what runs where no other does, and what the others are measured by.
#include "maxsim_tile.h"

namespace m3edge {
namespace {

// A query token at a time, its bytes in the order of the dimensions: loops that any compiler turns into vectors.
void run_plain(const Tile& tile) {
    for (size_t token = 0; token < tile.n_blocks; ++token) {
        const int8_t* query = reinterpret_cast<const int8_t*>(tile.query) + token * tile.width;
        for (int r = 0; r < tile.n_rows; ++r) {
            const int8_t* row = tile.rows + r * tile.stride;
            int32_t sum = 0;
            for (size_t k = 0; k < tile.width; ++k) sum += int16_t(int16_t(query[k]) * int16_t(row[k]));
            const float score = float(sum) * tile.scales[r];
            if (score > tile.best[token]) tile.best[token] = score;
        }
    }
}

constexpr TileKernel kernel = {8, 1, 0, run_plain};

}  // namespace

const TileKernel* tile_kernel_plain() { return &kernel; }

}  // namespace m3edge
