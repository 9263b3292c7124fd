// The transformer's part of m3edge._native: holds the arrays, checks them, lets go of the GIL. Nothing is computed here.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "parallel.h"
#include "transformer.h"

using namespace nb::literals;

namespace {

using MaybeVector = std::optional<Vector<float>>;
using NormArrays = std::pair<Vector<float>, Vector<float>>;
using TableArrays = std::pair<Matrix<int8_t>, Vector<float>>;

std::vector<float> copied(const Vector<float>& values) { return {values.data(), values.data() + values.shape(0)}; }

m3edge::Norm norm_of(const NormArrays& arrays) { return {copied(arrays.first), copied(arrays.second)}; }

m3edge::EmbeddingTable table_of(const TableArrays& arrays, size_t width) {
    const auto& [codes, scales] = arrays;
    if (codes.shape(1) != width || scales.shape(0) != codes.shape(0))
        refuse("a table must be " + std::to_string(width) + " wide, with a scale for every row");
    return {codes.data(), scales.data(), codes.shape(0)};
}

// One product's arrays, as they are in a model folder.
struct HeldLinear {
    Matrix<int8_t> codes;
    Vector<float> scales;
    MaybeVector bias;

    HeldLinear(Matrix<int8_t> codes_, Vector<float> scales_, MaybeVector bias_)
        : codes(std::move(codes_)), scales(std::move(scales_)), bias(std::move(bias_)) {
        const size_t n_outputs = codes.shape(1);
        if (scales.shape(0) != n_outputs || (bias && bias->shape(0) != n_outputs))
            refuse("scales and bias must be one for each of the " + std::to_string(n_outputs) + " outputs");
    }
};

// The products of the same rows, and how these are quantized.
struct HeldProduct {
    std::vector<HeldLinear> linears;
    MaybeVector smoothing;
    int32_t zero_point;
    float least;

    HeldProduct(const std::vector<const HeldLinear*>& linears_, MaybeVector smoothing_, int64_t zero_point_, double least_)
        : smoothing(std::move(smoothing_)), zero_point(int32_t(zero_point_)), least(float(least_)) {
        for (const HeldLinear* linear : linears_) linears.push_back(*linear);
        if (linears.empty()) refuse("linears must be at least one");
        if (zero_point_ < 1 || zero_point_ > 254) refuse("zero_point must be from 1 to 254, got " + std::to_string(zero_point_));
    }

    m3edge::PackedLinear packed() const {
        std::vector<m3edge::LinearWeights> weights;
        for (const HeldLinear& linear : linears)
            weights.push_back({linear.codes.data(), linear.scales.data(), linear.bias ? linear.bias->data() : nullptr,
                               linear.codes.shape(0), linear.codes.shape(1)});
        m3edge::PackedLinear result(weights);
        if (smoothing) result.smoothing = copied(*smoothing);
        result.input = {nullptr, zero_point, least};
        return result;
    }
};

struct HeldLayer {
    HeldProduct projections, attention_output, inner, output;
    NormArrays attention_norm, output_norm;

    HeldLayer(const HeldProduct& projections_, const HeldProduct& attention_output_, NormArrays attention_norm_,
              const HeldProduct& inner_, const HeldProduct& output_, NormArrays output_norm_)
        : projections(projections_), attention_output(attention_output_), inner(inner_), output(output_),
          attention_norm(std::move(attention_norm_)), output_norm(std::move(output_norm_)) {}

    m3edge::TransformerLayer packed() const {
        return {projections.packed(), attention_output.packed(), inner.packed(),
                output.packed(),      norm_of(attention_norm),   norm_of(output_norm)};
    }
};

// The tables, mapped from a file and kept alive, and the transformer that reads them.
class HeldTransformer {
  public:
    HeldTransformer(int64_t n_heads, double epsilon, bool mean_pooling, int64_t first_position, int64_t pad_id,
                    TableArrays words, TableArrays positions, const Vector<float>& token_type,
                    const NormArrays& embedding_norm, const std::vector<const HeldLayer*>& layers,
                    const std::pair<Matrix<float>, Vector<float>>& token_head,
                    const std::pair<Vector<float>, double>& sparse_head, int64_t n_threads)
        : words_(std::move(words)), positions_(std::move(positions)) {
        const size_t threads = checked_threads(n_threads), width = token_type.shape(0);
        if (n_heads < 1) refuse("n_heads must be at least 1, got " + std::to_string(n_heads));
        m3edge::TransformerModel model{};
        model.width = width;
        model.n_heads = size_t(n_heads);
        model.epsilon = float(epsilon);
        model.mean_pooling = mean_pooling;
        model.first_position = first_position;
        model.pad_id = pad_id;
        model.words = table_of(words_, width);
        model.positions = table_of(positions_, width);
        model.token_type = copied(token_type);
        model.embedding_norm = norm_of(embedding_norm);
        const auto& [weights, biases] = token_head;
        if (biases.shape(0) != weights.shape(1)) refuse("token_head must have a bias for each output");
        model.sparse_head = copied(sparse_head.first);
        model.sparse_bias = float(sparse_head.second);
        nb::gil_scoped_release release;
        model.token_head = {weights.data(), biases.data(), weights.shape(0), weights.shape(1)};
        model.layers = packed(layers, threads);
        transformer_.emplace(std::move(model));
    }

    // Every layer's weights in the order in which the kernels take them: for BGE-M3 300 MB are copied.
    static std::vector<m3edge::TransformerLayer> packed(const std::vector<const HeldLayer*>& layers, size_t n_threads) {
        std::vector<m3edge::TransformerLayer> result(layers.size());
        std::atomic<size_t> next{0};
        std::atomic<bool> failed{false};
        m3edge::run_workers(std::min(n_threads, std::max<size_t>(1, layers.size())), [&](size_t) {
            for (size_t i = next++; i < layers.size(); i = next++) {
                try {
                    result[i] = layers[i]->packed();
                } catch (const std::exception&) {
                    failed = true;
                }
            }
        });
        if (failed)  // again, where it may be thrown
            for (const HeldLayer* layer : layers) layer->packed();
        return result;
    }

    auto run(const Matrix<int64_t>& input_ids, const Matrix<int64_t>& attention_mask, bool dense, bool sparse, bool tokens,
             int64_t n_threads) const {
        const size_t batch = input_ids.shape(0), sequence = input_ids.shape(1);
        if (attention_mask.shape(0) != batch || attention_mask.shape(1) != sequence)
            refuse("attention_mask must have the shape of input_ids");
        const size_t threads = checked_threads(n_threads);
        const m3edge::TransformerModel& model = transformer_->model();
        const size_t token_width = model.token_head.n_outputs;
        auto dense_vectors = new_matrix<float>(dense ? batch : 0, model.width);
        auto weights = new_matrix<float>(sparse ? batch : 0, sequence);
        auto token_vectors = new_matrix<float>(tokens ? batch * sequence : 0, token_width);
        const m3edge::TransformerOutputs outputs = {dense ? dense_vectors.data() : nullptr,
                                                    sparse ? weights.data() : nullptr,
                                                    tokens ? token_vectors.data() : nullptr};
        {
            nb::gil_scoped_release release;
            transformer_->run(input_ids.data(), attention_mask.data(), batch, sequence, threads, outputs);
        }
        return std::make_tuple(dense_vectors, weights, token_vectors);
    }

  private:
    TableArrays words_, positions_;
    std::optional<m3edge::Transformer> transformer_;
};

}  // namespace

// Nothing where the compiler knew no vectors: Python then sees that there is no such engine.
void bind_transformer(nb::module_& module) {
    if (!m3edge::has_transformer()) return;
    nb::class_<HeldLinear>(module, "Linear")
        .def(nb::init<Matrix<int8_t>, Vector<float>, MaybeVector>(), "codes"_a.noconvert(), "scales"_a.noconvert(),
             "bias"_a.noconvert().none());
    nb::class_<HeldProduct>(module, "Product")
        .def(nb::init<std::vector<const HeldLinear*>, MaybeVector, int64_t, double>(), "linears"_a,
             "smoothing"_a.noconvert().none(), "zero_point"_a, "least"_a);
    nb::class_<HeldLayer>(module, "Layer")
        .def(nb::init<const HeldProduct&, const HeldProduct&, NormArrays, const HeldProduct&, const HeldProduct&,
                      NormArrays>(),
             "projections"_a, "attention_output"_a, "attention_norm"_a.noconvert(), "inner"_a, "output"_a,
             "output_norm"_a.noconvert());
    nb::class_<HeldTransformer>(module, "Transformer")
        .def(nb::init<int64_t, double, bool, int64_t, int64_t, TableArrays, TableArrays, const Vector<float>&, NormArrays,
                      const std::vector<const HeldLayer*>&, const std::pair<Matrix<float>, Vector<float>>&,
                      const std::pair<Vector<float>, double>&, int64_t>(),
             "n_heads"_a, "epsilon"_a, "mean_pooling"_a, "first_position"_a, "pad_id"_a, "words"_a.noconvert(),
             "positions"_a.noconvert(), "token_type"_a.noconvert(), "embedding_norm"_a.noconvert(), "layers"_a,
             "token_head"_a.noconvert(), "sparse_head"_a.noconvert(), "n_threads"_a)
        .def("run", &HeldTransformer::run, "input_ids"_a.noconvert(), "attention_mask"_a.noconvert(), "dense"_a, "sparse"_a,
             "tokens"_a, "n_threads"_a);
}
