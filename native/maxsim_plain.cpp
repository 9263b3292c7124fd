// The tile product in plain C++: what runs where no other does, and what the others are measured by.
#include <cstring>

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
            const float score = float(sum) * scale_of(tile, r);
            if (score > tile.best[token]) tile.best[token] = score;
        }
    }
}

// The same for floats, whose sums keep their order: so many query tokens at a time instead.
constexpr int float_lanes = 16;

void run_plain_floats(const Tile& tile) {
    const size_t dim = tile.width / sizeof(float);
    for (size_t block = 0; block < tile.n_blocks; ++block) {
        const float* query = reinterpret_cast<const float*>(tile.query) + block * dim * float_lanes;
        float* best = tile.best + block * float_lanes;
        for (int r = 0; r < tile.n_rows; ++r) {
            const float* row = reinterpret_cast<const float*>(tile.rows + r * tile.stride);
            float sums[float_lanes] = {};
            for (size_t k = 0; k < dim; ++k)
                for (int lane = 0; lane < float_lanes; ++lane) sums[lane] += query[k * float_lanes + lane] * row[k];
            for (int lane = 0; lane < float_lanes; ++lane)
                if (sums[lane] > best[lane]) best[lane] = sums[lane];
        }
    }
}

// Moves the exponent from half precision's place to float's; the product with 2 ** 112 sets its bias right, and makes
// normal numbers of the subnormal ones.
void widen_plain(const uint8_t* halves, size_t n, float* out) {
    for (size_t k = 0; k < n; ++k) {
        const uint32_t half = uint32_t(halves[2 * k]) | uint32_t(halves[2 * k + 1]) << 8;
        const uint32_t bits = (half & 0x7fff) << 13;
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude *= 0x1p112f;
        out[k] = half & 0x8000 ? -magnitude : magnitude;
    }
}

constexpr TileKernel kernel = {8, 1, 0, run_plain};
constexpr FloatKernel floats = {{8, float_lanes, 0, run_plain_floats}, widen_plain};

}  // namespace

const TileKernel* tile_kernel_plain() { return &kernel; }
const FloatKernel* float_kernel_plain() { return &floats; }

}  // namespace m3edge
