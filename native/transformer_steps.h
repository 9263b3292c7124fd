// The steps of an encoder layer, written once in the compilers' own vectors and compiled for each instruction set; only
// the product of bytes is every set's own.
//
// Sums keep their order whatever is computed beside them, so that a row's numbers depend neither on its batch nor on the
// number of threads.
//
// Included by files compiled for different instruction sets: no inline function of the standard library may be used
// here, or the linker could keep the copy that only some processors can run.
#pragma once

#include "inline.h"
#include "transformer_kernels.h"

#if defined(__GNUC__)

namespace m3edge {
namespace {  // a copy for each file, compiled for its instruction set

#if defined(__AVX512F__)
constexpr size_t lanes = 16, most_rows = 8;  // 8 rows by 2 registers: 16 sums, 2 of the right side, 1 of the left
#elif defined(__AVX2__)
constexpr size_t lanes = 8, most_rows = 6;
#else
constexpr size_t lanes = 4, most_rows = 4;
#endif
constexpr size_t pair = 2 * lanes;  // columns of a product of floats that are computed together

typedef float Floats __attribute__((vector_size(4 * lanes)));
typedef int32_t Ints __attribute__((vector_size(4 * lanes)));
typedef int8_t Bytes __attribute__((vector_size(lanes)));
typedef uint8_t UnsignedBytes __attribute__((vector_size(lanes)));

template <class V, class T>
M3EDGE_INLINE V load(const T* from) {
    V value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}
template <class V, class T>
M3EDGE_INLINE void store(T* to, V value) {
    __builtin_memcpy(to, &value, sizeof value);
}
M3EDGE_INLINE Floats all(float value) { return value - Floats{}; }  // -0.0 stays what it is
M3EDGE_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
M3EDGE_INLINE Floats widened(const int8_t* bytes) { return __builtin_convertvector(load<Bytes>(bytes), Floats); }

M3EDGE_INLINE float sum_of(Floats v) {
    float sum = 0;
    for (size_t lane = 0; lane < lanes; ++lane) sum += v[lane];
    return sum;
}

constexpr float no_fraction = 0x1.8p23f;  // a sum with it has no bits for a fraction, and the integer in its lowest

// e ** x for x <= 0, to 2e-7 of it; 0 below the smallest normal number.
M3EDGE_INLINE Floats exponential(Floats x) {
    const Floats shifted = x * 1.44269504f + no_fraction;
    const Floats whole = shifted - no_fraction;
    const Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
    Floats power = all(1.9875691500e-4f);  // Cephes' polynomial
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    const Ints exponent = (Ints)shifted << 23;  // what stands above the integer is shifted out
    const Floats result = (Floats)((Ints)power + exponent);
    return x > all(-87.0f) ? result : Floats{};
}

// x times the normal distribution's integral up to x; its tail by formula 7.1.26 of Abramowitz and Stegun, exact to 1e-7.
M3EDGE_INLINE Floats gelu(Floats x) {
    const Floats z = (x < Floats{} ? -x : x) * 0.70710678f;
    const Floats t = 1.0f / (z * 0.3275911f + 1.0f);
    Floats tail = t * 1.061405429f - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = tail * t * exponential(-z * z) * 0.5f * x;
    return x < Floats{} ? tail : x - tail;
}

// Products of bytes

// What is common to all instruction sets. B: `tiles` and `panels`, how many it multiplies together; `offset`, which it takes
// off every row's byte; begin, end; and `sums`, int32 [tiles][panels][16][16] of so many or fewer.
template <class B>
struct ByteProducts {
    typedef int32_t TileSums[tile_rows][panel_width];

    static void multiply(const ByteProduct& product, size_t first_row, size_t n_rows, size_t first_panel, size_t n_panels) {
        B::begin();
        const size_t end_tile = (first_row + n_rows + tile_rows - 1) / tile_rows, end_panel = first_panel + n_panels;
        for (size_t panel = first_panel; panel < end_panel; panel += B::panels)
            for (size_t tile = first_row / tile_rows; tile < end_tile; tile += B::tiles)
                block<B::tiles, B::panels>(product, tile, end_tile - tile, panel, end_panel - panel);
        B::end();
    }

    // Of T tiles and P panels, or those that remain.
    template <size_t T, size_t P>
    static M3EDGE_INLINE void block(const ByteProduct& product, size_t tile, size_t tiles, size_t panel, size_t panels) {
        if constexpr (T > 1) {
            if (tiles < T) return block<T - 1, P>(product, tile, tiles, panel, panels);
        }
        if constexpr (P > 1) {
            if (panels < P) return block<T, P - 1>(product, tile, tiles, panel, panels);
        }
        alignas(64) TileSums sums[T][P];
        B::template sums<T, P>(product.rows + tile * product.k_blocks * tile_bytes,
                               product.weights + panel * product.k_blocks * panel_bytes, product.k_blocks, sums);
        for (size_t p = 0; p < P; ++p)
            for (size_t t = 0; t < T; ++t) finish(product, (tile + t) * tile_rows, panel + p, sums[t][p]);
    }

    // From sums to outputs.
    static M3EDGE_INLINE void finish(const ByteProduct& product, size_t row, size_t panel, const TileSums& sums) {
        const size_t n_rows = product.n_rows - row < tile_rows ? product.n_rows - row : tile_rows;
        const size_t place = panel / product.block_panels * product.block_stride +
                             panel % product.block_panels * panel_width + row * product.row_stride;
        for (size_t j = 0; j < panel_width; j += lanes) {
            const size_t output = panel * panel_width + j;
            const Ints correction = load<Ints>(product.column_sums + output) * (product.zero_point - B::offset);
            const Floats scale = load<Floats>(product.scales + output), bias = load<Floats>(product.biases + output);
            for (size_t r = 0; r < n_rows; ++r) {
                const Floats sum = __builtin_convertvector(load<Ints>(sums[r] + j) - correction, Floats);
                Floats y = sum * scale * product.row_scales[row + r] + bias;
                const size_t at = place + r * product.row_stride + j;
                if (product.residual != nullptr) y += load<Floats>(product.residual + at);
                store(product.out + at, product.gelu ? gelu(y) : y);
            }
        }
    }
};

// Products of floats

// R rows by C registers of columns: sums[r][c] = Σ_k left[r][k] * right[k][c].
template <size_t R, size_t C>
struct Sums {
    Floats of[R][C];

    M3EDGE_INLINE void add(const float* left, size_t left_row, size_t left_k, const float* right, size_t right_k, size_t n) {
        for (size_t r = 0; r < R; ++r)
            for (size_t c = 0; c < C; ++c) of[r][c] = Floats{};
        for (size_t k = 0; k < n; ++k) {
            Floats columns[C];
            for (size_t c = 0; c < C; ++c) columns[c] = load<Floats>(right + k * right_k + c * lanes);
            for (size_t r = 0; r < R; ++r) {
                const Floats row = all(left[r * left_row + k * left_k]);
                for (size_t c = 0; c < C; ++c) of[r][c] += row * columns[c];
            }
        }
    }
};

// Calls put(r, sums of row r) for n_rows rows, a few at a time; what is computed for a row is the same in every number.
template <size_t R, size_t C, class Put>
M3EDGE_INLINE void rows_of_sums(const float* left, size_t left_row, size_t left_k, const float* right, size_t right_k,
                                size_t n, size_t n_rows, const Put& put) {
    size_t row = 0;
    for (; row + R <= n_rows; row += R) {
        Sums<R, C> sums;
        sums.add(left + row * left_row, left_row, left_k, right, right_k, n);
        for (size_t r = 0; r < R; ++r) put(row + r, sums.of[r]);
    }
    for (; row < n_rows; ++row) {
        Sums<1, C> sums;
        sums.add(left + row * left_row, left_row, left_k, right, right_k, n);
        put(row, sums.of[0]);
    }
}

void multiply_floats(const float* rows, size_t n_rows, size_t n_inputs, const float* weights, const float* biases,
                     size_t first_panel, size_t n_panels, float* out, size_t out_stride) {
    for (size_t panel = first_panel; panel < first_panel + n_panels; ++panel)
        for (size_t j = 0; j < panel_width; j += lanes) {
            const size_t output = panel * panel_width + j;
            const Floats bias = load<Floats>(biases + output);
            rows_of_sums<most_rows, 1>(rows, n_inputs, 1, weights + panel * panel_width * n_inputs + j, panel_width, n_inputs,
                                       n_rows, [&](size_t r, const Floats* sums) {
                                           store(out + r * out_stride + output, sums[0] + bias);
                                       });
        }
}

// Attention. A register's lanes are queries: softmax then goes along registers, and nothing is summed across lanes.

template <size_t C>
M3EDGE_INLINE void attend_block(const HeadAttention& head) {
    constexpr size_t block = C * lanes;
    const size_t width = head.head_width, n = head.n_tokens;
    float* packed = head.scratch;           // queries, [width][block]
    float* scores = packed + width * block;  // [n][block]
    const float* queries = head.queries + head.first_query * width;
    for (size_t q = 0; q < block; ++q)
        for (size_t k = 0; k < width; ++k)
            packed[k * block + q] = q < head.n_queries ? queries[q * width + k] * head.scale : 0.0f;
    Floats largest[C], total[C];
    for (size_t c = 0; c < C; ++c) largest[c] = all(-3e38f), total[c] = Floats{};
    rows_of_sums<most_rows, C>(head.keys, width, 1, packed, block, width, n, [&](size_t key, const Floats* sums) {
        for (size_t c = 0; c < C; ++c) {
            store(scores + key * block + c * lanes, sums[c]);
            largest[c] = larger(largest[c], sums[c]);
        }
    });
    for (size_t key = 0; key < n; ++key)
        for (size_t c = 0; c < C; ++c) {
            float* place = scores + key * block + c * lanes;
            const Floats share = exponential(load<Floats>(place) - largest[c]);
            total[c] += share;
            store(place, share);
        }
    float inverse[block];
    for (size_t c = 0; c < C; ++c) store(inverse + c * lanes, 1.0f / total[c]);
    for (size_t j = 0; j < width; j += lanes)
        rows_of_sums<most_rows, 1>(scores, 1, block, head.values + j, width, n, head.n_queries, [&](size_t q, const Floats* sums) {
            store(head.out + q * head.out_stride + j, sums[0] * inverse[q]);
        });
}

void attend(const HeadAttention& head) {
    if (head.n_queries > lanes)
        attend_block<2>(head);
    else
        attend_block<1>(head);
}

// Rows

float quantize(const float* values, size_t width, size_t k_blocks, const Quantization& how, uint8_t* tiles, size_t row) {
    Floats most = Floats{}, least = Floats{};
    const auto smooth = [&](size_t k) {
        const Floats x = load<Floats>(values + k);
        return how.smoothing != nullptr ? x * load<Floats>(how.smoothing + k) : x;
    };
    for (size_t k = 0; k < width; k += lanes) {
        const Floats x = smooth(k);
        most = larger(most, x);
        least = larger(least, -x);
    }
    float above = 0, below = 0;
    for (size_t lane = 0; lane < lanes; ++lane) {
        above = most[lane] > above ? most[lane] : above;
        below = least[lane] > below ? least[lane] : below;
    }
    if (how.least >= 0) below = how.least;
    float scale = above / float(255 - how.zero_point);
    if (below / float(how.zero_point) > scale) scale = below / float(how.zero_point);
    if (!(scale > 1e-12f)) scale = 1e-12f;
    const float inverse = 1 / scale;
    uint8_t* out = tiles + row / tile_rows * k_blocks * tile_bytes + row % tile_rows * tile_depth;
    for (size_t k = 0; k < width; k += lanes) {
        const Ints codes = (Ints)(smooth(k) * inverse + (no_fraction + float(how.zero_point)));
        store(out + k / tile_depth * tile_bytes + k % tile_depth, __builtin_convertvector(codes & 255, UnsignedBytes));
    }
    return scale;
}

void normalize(const float* values, size_t width, const float* weights, const float* biases, float epsilon, float* out) {
    Floats sum = Floats{};
    for (size_t k = 0; k < width; k += lanes) sum += load<Floats>(values + k);
    const Floats mean = all(sum_of(sum) / float(width));
    Floats squares = Floats{};
    for (size_t k = 0; k < width; k += lanes) {
        const Floats x = load<Floats>(values + k) - mean;
        squares += x * x;
    }
    const Floats inverse = all(1 / __builtin_sqrtf(sum_of(squares) / float(width) + epsilon));
    for (size_t k = 0; k < width; k += lanes)
        store(out + k, (load<Floats>(values + k) - mean) * inverse * load<Floats>(weights + k) + load<Floats>(biases + k));
}

void embed(const int8_t* word, float word_scale, const int8_t* position, float position_scale, const float* type,
           size_t width, float* out) {
    for (size_t k = 0; k < width; k += lanes)
        store(out + k, widened(word + k) * word_scale + load<Floats>(type + k) + widened(position + k) * position_scale);
}

void to_unit_length(float* row, size_t width) {
    Floats squares = Floats{};
    for (size_t k = 0; k < width; k += lanes) squares += load<Floats>(row + k) * load<Floats>(row + k);
    const float length = __builtin_sqrtf(sum_of(squares));
    const float inverse = 1 / (length > 1e-12f ? length : 1e-12f);
    for (size_t k = 0; k < width; k += lanes) store(row + k, load<Floats>(row + k) * inverse);
}

template <class B>
constexpr TransformerKernels kernels_of = {pair,  ByteProducts<B>::multiply, attend, quantize, normalize, embed,
                                           multiply_floats, to_unit_length};

}  // namespace
}  // namespace m3edge

#endif
