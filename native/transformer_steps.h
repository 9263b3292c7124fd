// The steps of an encoder layer, written once in the compilers' own vectors and compiled for each instruction set; only how
// products are computed is every set's own.
//
// Sums keep their order whatever is computed beside them, so that a row's numbers depend neither on its batch nor on the
// number of threads.
#pragma once

#include "transformer_attention.h"
#include "transformer_products.h"
#include "transformer_vectors.h"

#if defined(__GNUC__)

namespace m3edge {
namespace {  // a copy for each file, compiled for its instruction set

// Products of bytes. B multiplies them, and takes `offset` off every row's byte.

template <class B, int32_t offset>
void multiply(const ByteProduct& product, size_t first_row, size_t n_rows, size_t first_panel, size_t n_panels) {
    const auto finish = [&](size_t tile, size_t panel, const int32_t* sums, size_t stride) {
        const size_t row = tile * tile_rows;
        const size_t n_held = product.n_rows - row < tile_rows ? product.n_rows - row : tile_rows;
        const size_t place = panel / product.block_panels * product.block_stride +
                             panel % product.block_panels * panel_width + row * product.row_stride;
        for (size_t j = 0; j < panel_width; j += lanes) {
            const size_t output = panel * panel_width + j;
            const Ints correction = load<Ints>(product.column_sums + output) * (product.zero_point - offset);
            const Floats scale = load<Floats>(product.scales + output), bias = load<Floats>(product.biases + output);
            for (size_t r = 0; r < n_held; ++r) {
                const Floats sum = __builtin_convertvector(load<Ints>(sums + r * stride + j) - correction, Floats);
                Floats y = sum * scale * product.row_scales[row + r] + bias;
                const size_t at = place + r * product.row_stride + j;
                if (product.residual != nullptr) y += load<Floats>(product.residual + at);
                store(product.out + at, product.gelu ? gelu(y) : y);
            }
        }
    };
    B::begin();
    multiply_tiles<B>({product.rows, (const uint8_t*)product.weights, product.k_blocks}, first_row / tile_rows,
                      (first_row + n_rows + tile_rows - 1) / tile_rows, first_panel, first_panel + n_panels, finish);
    B::end();
}

// Products of floats

// R rows of y = x W + b, for a register's outputs.
template <size_t R>
M3EDGE_INLINE void multiply_float_rows(const float* rows, size_t n_inputs, const float* weights, Floats bias, float* out,
                                       size_t out_stride) {
    Floats sums[R];
    for (size_t r = 0; r < R; ++r) sums[r] = Floats{};
    for (size_t k = 0; k < n_inputs; ++k) {
        const Floats column = load<Floats>(weights + k * panel_width);
        for (size_t r = 0; r < R; ++r) sums[r] += column * rows[r * n_inputs + k];
    }
    for (size_t r = 0; r < R; ++r) store(out + r * out_stride, sums[r] + bias);
}

void multiply_floats(const float* rows, size_t n_rows, size_t n_inputs, const float* weights, const float* biases,
                     size_t first_panel, size_t n_panels, float* out, size_t out_stride) {
    constexpr size_t some = 8;  // sums that are added to in turn
    for (size_t output = first_panel * panel_width; output < (first_panel + n_panels) * panel_width; output += lanes) {
        const float* columns = weights + output / panel_width * panel_width * n_inputs + output % panel_width;
        const Floats bias = load<Floats>(biases + output);
        size_t row = 0;
        for (; row + some <= n_rows; row += some)
            multiply_float_rows<some>(rows + row * n_inputs, n_inputs, columns, bias, out + row * out_stride + output,
                                      out_stride);
        for (; row < n_rows; ++row)
            multiply_float_rows<1>(rows + row * n_inputs, n_inputs, columns, bias, out + row * out_stride + output,
                                   out_stride);
    }
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
    const float above = largest_of(most), below = how.least >= 0 ? how.least : largest_of(least);
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

template <class B, int32_t offset, class E>
constexpr TransformerKernels kernels_of = {multiply<B, offset>,
                                           Attention<E>::packed_bytes,
                                           Attention<E>::pack,
                                           Attention<E>::scratch_bytes,
                                           Attention<E>::attend,
                                           quantize,
                                           normalize,
                                           embed,
                                           multiply_floats,
                                           to_unit_length};

}  // namespace
}  // namespace m3edge

#endif
