// What transformer.cpp and the instruction sets' files agree on: the steps of an encoder layer, each for a few rows.
//
// A row is a token. Products of bytes go by tiles of 16 rows by 64 inputs and panels of 64 inputs by 16 outputs, in the
// order in which AMX takes them and which suits registers as well:
//     rows     uint8 [row tiles][k blocks][16 rows][64 inputs]
//     weights  int8  [panels][k blocks][16 groups][16 outputs][4 inputs]
// The number of inputs is filled up with zero weights to a multiple of 64; that of outputs is a multiple of 16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "inline.h"

namespace m3edge {

constexpr size_t tile_rows = 16, tile_depth = 64, panel_width = 16;
constexpr size_t tile_bytes = tile_rows * tile_depth, panel_bytes = panel_width * tile_depth;

// Always inlined: no instruction set's copy may serve another.
M3EDGE_INLINE size_t rounded_up(size_t size, size_t step) { return (size + step - 1) / step * step; }

// y = x W + b, of x in bytes with a scale for every row and a zero point, W in bytes with a scale for every output.
struct ByteProduct {
    const uint8_t* rows;
    const float* row_scales;  // [n_rows]
    int32_t zero_point;       // of the rows
    size_t n_rows, k_blocks;

    const int8_t* weights;
    const float* scales;         // [outputs]
    const float* biases;         // [outputs]
    const int32_t* column_sums;  // [outputs], of the weights' bytes

    const float* residual;  // added to y; laid out as `out`; or null
    bool gelu;              // apply GELU to y
    // An output's panels in blocks: panel p of row r is at out + p / block_panels * block_stride + r * row_stride +
    // p % block_panels * 16.
    float* out;
    size_t row_stride, block_panels, block_stride;
};

constexpr size_t query_block = 32;  // queries whose attention is computed together

// One head's attention of a block of a text's queries.
struct HeadAttention {
    const float *queries, *keys, *values;  // [n_tokens][head_width], of the whole text
    size_t n_tokens, head_width;           // head_width: a multiple of 16
    uint8_t* packed;                       // what the kernels make of keys and values; as scratch, aligned to 64 bytes
    size_t first_query, n_queries;         // n_queries: at most query_block
    uint8_t* scratch;
    float* out;  // [n_queries], a row every out_stride floats
    size_t out_stride;
};

// How rows are quantized: byte = round(x * smoothing / scale) + zero_point.
struct Quantization {
    const float* smoothing;  // [width], or null
    int32_t zero_point;
    float least;  // how far below 0 a row goes, where that is known, otherwise negative: it is looked for
};

struct TransformerKernels {
    void (*multiply)(const ByteProduct&, size_t first_row, size_t n_rows, size_t first_panel, size_t n_panels);
    // packed_bytes(n_tokens, head_width), a multiple of 64; pack, once for all of a head's queries; and for a block of them
    // attend, with scratch_bytes(head_width).
    size_t (*packed_bytes)(size_t, size_t);
    void (*pack)(const HeadAttention&);
    size_t (*scratch_bytes)(size_t);
    void (*attend)(const HeadAttention&);
    // One row, float32 [width] to the bytes of row number `row` in `tiles`; returns its scale.
    float (*quantize)(const float* values, size_t width, size_t k_blocks, const Quantization&, uint8_t* tiles, size_t row);
    // LayerNorm of one row; `out` may be `values`.
    void (*normalize)(const float* values, size_t width, const float* weights, const float* biases, float epsilon,
                      float* out);
    // out = word * word_scale + type + position * position_scale
    void (*embed)(const int8_t* word, float word_scale, const int8_t* position, float position_scale, const float* type,
                  size_t width, float* out);
    // Rows of y = x W + b in float32: out[r][n] for the outputs of some panels; weights: [panels][inputs][16].
    void (*multiply_floats)(const float* rows, size_t n_rows, size_t n_inputs, const float* weights, const float* biases,
                            size_t first_panel, size_t n_panels, float* out, size_t out_stride);
    // Divides a row by its length.
    void (*to_unit_length)(float* row, size_t width);
};

// nullptr where the compiler could not build it; all of them are with a compiler that has no vectors.
const TransformerKernels* transformer_kernels_plain();
const TransformerKernels* transformer_kernels_avx2();
const TransformerKernels* transformer_kernels_avxvnni();
const TransformerKernels* transformer_kernels_avx512vnni();
const TransformerKernels* transformer_kernels_amx();
const TransformerKernels* transformer_kernels_neon();

}  // namespace m3edge
