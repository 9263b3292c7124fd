// An encoder of the BERT type whose products are of bytes: from token ids to what an M3 model's three heads give.
//
// What it computes is the int8 graph of a model folder, step by step: rows are quantized where the graph quantizes them,
// attention is in what an instruction set multiplies fastest (transformer_attention.h), everything else in float32. Texts lie
// one after another without padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "aligned.h"
#include "transformer_kernels.h"

namespace m3edge {

// A table of embeddings, int8 [rows][width] with a scale for every row; not copied.
struct EmbeddingTable {
    const int8_t* codes;
    const float* scales;
    size_t n_rows;
};

// Weights of one product as a model folder has them, int8 [inputs][outputs]; bias: null where there is none
struct LinearWeights {
    const int8_t* codes;
    const float *scales, *bias;
    size_t n_inputs, n_outputs;
};

// One or several products of the same rows, as the kernels take them.
struct PackedLinear {
    PackedLinear() = default;
    explicit PackedLinear(const std::vector<LinearWeights>& side_by_side);

    size_t n_inputs = 0, n_outputs = 0, k_blocks = 0;
    Aligned<int8_t> weights;
    Aligned<float> scales, biases;
    Aligned<int32_t> column_sums;
    Quantization input{};           // how its rows are quantized; smoothing points into the next
    std::vector<float> smoothing;   // [n_inputs], or empty
};

struct Norm {
    std::vector<float> weights, biases;
};

struct TransformerLayer {
    PackedLinear projections;  // queries, keys, values
    PackedLinear attention_output, inner, output;
    Norm attention_norm, output_norm;
};

// A head in float32: float [inputs][outputs] in panels of 16 outputs.
struct FloatHead {
    FloatHead() = default;
    FloatHead(const float* weights, const float* bias, size_t n_inputs, size_t n_outputs);

    size_t n_inputs = 0, n_outputs = 0;
    Aligned<float> weights, biases;
};

struct TransformerModel {
    size_t width, n_heads;
    float epsilon;
    bool mean_pooling;       // else the first token's state, and further ones' (MCLS)
    int64_t first_position;  // of a text's first token
    int64_t pad_id;          // has the position before the first, and does not count; or -1: every token counts
    EmbeddingTable words, positions;
    std::vector<float> token_type;
    Norm embedding_norm;
    std::vector<TransformerLayer> layers;
    FloatHead token_head;
    std::vector<float> sparse_head;
    float sparse_bias;
};

// What a run is to write; null for what is not wanted.
struct TransformerOutputs {
    float* dense;    // [batch][width], of length 1
    float* weights;  // [batch][sequence]; 0 behind a text
    float* tokens;   // [batch][sequence][token width], of length 1; 0 behind a text
};

class Transformer {
  public:
    // Throws std::invalid_argument where widths do not fit each other or the kernels.
    explicit Transformer(TransformerModel model);
    ~Transformer();

    // ids, mask: [batch][sequence]; mask: 0 where there is no token, 2 at a further `<s>`, else 1. Safe to call from
    // several threads. Throws std::invalid_argument for an id or a text that the tables have no room for.
    void run(const int64_t* ids, const int64_t* mask, size_t batch, size_t sequence, size_t n_threads,
             const TransformerOutputs& outputs) const;

    const TransformerModel& model() const { return model_; }

  private:
    struct Scratch;
    struct Batch;
    class Run;

    TransformerModel model_;
    double products_a_token_;
    mutable std::mutex lock_;
    mutable std::vector<std::unique_ptr<Scratch>> idle_;  // as many as ever ran at once
};

// Whether the compiler that built this knows vectors: without them there are no kernels.
bool has_transformer();

}  // namespace m3edge
