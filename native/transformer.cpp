#include "transformer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu.h"
#include "crew.h"

namespace m3edge {
namespace {

// A layer is computed for a group of texts at a time, and what follows its attention for a chunk of a group's rows: what
// one step writes should still be in a core's cache when the next one reads it. Multiples of a tile's rows.
constexpr size_t group_rows = 256, chunk_rows = 128;
constexpr size_t few_rows = 64;     // so many of a query or two
constexpr size_t most_panels = 12;  // of weights that a piece of a product of more rows reads
constexpr size_t rows_an_item = 4;
constexpr size_t kept_bytes = size_t(64) << 20;  // of scratch, for the next run
constexpr double min_products_a_thread = 2e7;

const TransformerKernels* kernels() {
    return Kernels<const TransformerKernels*>{transformer_kernels_plain(),      transformer_kernels_avx2(),
                                              transformer_kernels_avxvnni(),    transformer_kernels_avx512vnni(),
                                              transformer_kernels_amx(),        transformer_kernels_neon()}
        .in_use();
}

// Sixteen outputs of four inputs' weights, from rows of outputs to groups of four inputs; and their sums.
void pack_group(const int8_t* codes, size_t stride, int8_t* out, int32_t* sums) {
    for (size_t j = 0; j < panel_width; ++j) {
        const int8_t* column = codes + j;
        const int8_t four[4] = {column[0], column[stride], column[2 * stride], column[3 * stride]};
        std::memcpy(out + j * 4, four, 4);
        sums[j] += four[0] + four[1] + four[2] + four[3];
    }
}

void check(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(what);
}

}  // namespace

bool has_transformer() { return transformer_kernels_plain() != nullptr; }

PackedLinear::PackedLinear(const std::vector<LinearWeights>& side_by_side) {
    n_inputs = side_by_side.front().n_inputs;
    for (const LinearWeights& linear : side_by_side) {
        check(linear.n_inputs == n_inputs, "products of the same rows must have as many inputs");
        n_outputs += linear.n_outputs;
    }
    check(n_inputs % panel_width == 0 && n_outputs % panel_width == 0, "widths must be multiples of 16");
    k_blocks = rounded_up(n_inputs, tile_depth) / tile_depth;
    weights.grow(n_outputs * k_blocks * tile_depth);
    scales.grow(n_outputs);
    biases.grow(n_outputs);
    column_sums.grow(n_outputs);
    size_t output = 0;
    for (const LinearWeights& linear : side_by_side) {
        std::copy_n(linear.scales, linear.n_outputs, scales.data() + output);
        if (linear.bias != nullptr) std::copy_n(linear.bias, linear.n_outputs, biases.data() + output);
        for (size_t j = 0; j < linear.n_outputs; j += panel_width, output += panel_width) {
            int8_t* panel = weights.data() + output * k_blocks * tile_depth;
            for (size_t k = 0; k < n_inputs; k += 4)  // which are a multiple of 16
                pack_group(linear.codes + k * linear.n_outputs + j, linear.n_outputs, panel + k * panel_width,
                           column_sums.data() + output);
        }
    }
}

FloatHead::FloatHead(const float* codes, const float* bias, size_t inputs, size_t outputs)
    : n_inputs(inputs), n_outputs(outputs), weights(inputs * outputs), biases(outputs) {
    check(n_outputs % panel_width == 0, "widths must be multiples of 16");
    std::copy_n(bias, n_outputs, biases.data());
    for (size_t j = 0; j < n_outputs; j += panel_width)
        for (size_t k = 0; k < n_inputs; ++k)
            std::copy_n(codes + k * n_outputs + j, panel_width, weights.data() + j * n_inputs + k * panel_width);
}

// What a run needs beside the model. Kept from run to run: the system would clear every page of new memory.
struct Transformer::Scratch {
    Aligned<float> states, sums, heads, attended, inner;  // rows of the width; heads: [3 * n_heads][rows][head width]
    Aligned<uint8_t> packed;                              // each text's and head's keys and values
    Aligned<uint8_t> bytes;                               // of the rows that are multiplied next
    Aligned<float> row_scales;
    std::vector<Aligned<uint8_t>> attention;  // of each thread

    size_t held() const {
        size_t total = packed.bytes() + bytes.bytes() + row_scales.bytes();
        for (const Aligned<float>* one : {&states, &sums, &heads, &attended, &inner}) total += one->bytes();
        for (const Aligned<uint8_t>& one : attention) total += one.bytes();
        return total;
    }
};

// A batch's tokens one after another.
struct Transformer::Batch {
    struct Token {
        size_t word, position, place;  // rows of the tables; where in [batch * sequence]
        bool is_cls;
    };
    std::vector<Token> tokens;
    std::vector<size_t> starts;  // of each text's, and behind the last

    Batch(const TransformerModel& model, const int64_t* ids, const int64_t* mask, size_t batch, size_t sequence) {
        starts.push_back(0);
        for (size_t text = 0; text < batch; ++text) {
            int64_t n_counted = 0;
            for (size_t column = 0; column < sequence; ++column) {
                const size_t place = text * sequence + column;
                const int64_t id = ids[place];
                const bool counts = id != model.pad_id;
                const int64_t position = model.first_position + (counts ? n_counted : -1);
                n_counted += counts;
                if (mask[place] == 0) continue;
                if (id < 0 || size_t(id) >= model.words.n_rows)
                    throw std::invalid_argument("input_ids must be below " + std::to_string(model.words.n_rows) + ", got " +
                                                std::to_string(id));
                if (position < 0 || size_t(position) >= model.positions.n_rows)
                    throw std::invalid_argument("a text must fit the model's " + std::to_string(model.positions.n_rows) +
                                                " positions");
                tokens.push_back({size_t(id), size_t(position), place, column == 0 || mask[place] == 2});
            }
            starts.push_back(tokens.size());
        }
    }
};

// One run: the steps in their order, each shared among the crew.
class Transformer::Run {
  public:
    Run(const TransformerModel& model, const Batch& batch, const TransformerOutputs& outputs, Scratch& scratch,
        size_t n_workers)
        : model_(model), batch_(batch), outputs_(outputs), scratch_(scratch), kernels_(*kernels()),
          head_width_(model.width / model.n_heads), pieces_(2 * n_workers) {
        size_t most_rows = 0, most_packed = 0;
        for (size_t text = 0; text + 1 < batch.starts.size(); ++text) {
            const size_t start = batch.starts[text], end = batch.starts[text + 1];
            if (groups_.empty() || end - groups_.back().first_row > group_rows) groups_.push_back({start, 0, 0, {}, {}});
            Group& group = groups_.back();
            group.n_rows = end - group.first_row;
            for (size_t head = 0; head < model.n_heads; ++head) {
                group.heads.push_back({start, end, head, group.packed_bytes});
                for (size_t row = start; row < end; row += query_block) group.attentions.push_back({group.heads.size() - 1, row});
                group.packed_bytes += kernels_.packed_bytes(end - start, head_width_);
            }
            most_rows = std::max(most_rows, group.n_rows);
            most_packed = std::max(most_packed, group.packed_bytes);
        }
        size_t widest = 0, most_blocks = 0;
        for (const TransformerLayer& layer : model.layers) {
            widest = std::max(widest, layer.inner.n_outputs);
            most_blocks = std::max({most_blocks, layer.inner.k_blocks, layer.output.k_blocks});
        }
        const size_t some = std::min(most_rows, chunk_rows);
        scratch.states.grow(batch.tokens.size() * model.width);
        scratch.sums.grow(some * model.width);
        scratch.heads.grow(3 * most_rows * model.width);
        scratch.packed.grow(most_packed);
        scratch.attended.grow(most_rows * model.width);
        scratch.inner.grow(some * widest);
        scratch.bytes.grow(std::max(rounded_up(most_rows, tile_rows) * rounded_up(model.width, tile_depth),
                                    rounded_up(some, tile_rows) * most_blocks * tile_depth));
        scratch.row_scales.grow(most_rows);
        if (scratch.attention.size() < n_workers) scratch.attention.resize(n_workers);
        for (Aligned<uint8_t>& attention : scratch.attention) attention.grow(kernels_.scratch_bytes(head_width_));
    }

    void operator()(Crew& crew) {
        rows(crew, 0, batch_.tokens.size(), [&](size_t row) {
            const Batch::Token& token = batch_.tokens[row];
            const EmbeddingTable &words = model_.words, &positions = model_.positions;
            kernels_.embed(words.codes + token.word * model_.width, words.scales[token.word],
                           positions.codes + token.position * model_.width, positions.scales[token.position],
                           model_.token_type.data(), model_.width, state(row));
            normalize(state(row), model_.embedding_norm, state(row));
        });
        for (const TransformerLayer& layer : model_.layers)
            for (const Group& group : groups_) {
                project(crew, layer, group);
                attend(crew, group);
                for (size_t row = 0; row < group.n_rows; row += chunk_rows)
                    feed_forward(crew, layer, group.first_row + row, row, std::min(chunk_rows, group.n_rows - row));
            }
        if (outputs_.dense != nullptr) pool(crew);
        if (outputs_.weights != nullptr) weigh(crew);
        if (outputs_.tokens != nullptr) make_token_vectors(crew);
    }

  private:
    // A head of a text, and where among the packed ones it begins.
    struct Head {
        size_t first_row, end_row, number, packed;
    };
    struct Attention {
        size_t head, first_row;  // head: of the group's
    };
    // Whole texts, whose rows are side by side.
    struct Group {
        size_t first_row, n_rows, packed_bytes;
        std::vector<Head> heads;
        std::vector<Attention> attentions;
    };

    float* state(size_t row) { return scratch_.states.data() + row * model_.width; }
    float* attended(size_t row) { return scratch_.attended.data() + row * model_.width; }

    void normalize(const float* values, const Norm& norm, float* out) const {
        kernels_.normalize(values, model_.width, norm.weights.data(), norm.biases.data(), model_.epsilon, out);
    }

    // The bytes of a row of a product's input.
    void quantize(const PackedLinear& linear, const float* values, size_t row) {
        scratch_.row_scales.data()[row] =
            kernels_.quantize(values, linear.n_inputs, linear.k_blocks, linear.input, scratch_.bytes.data(), row);
    }

    // Calls work(row) for rows [first, first + n).
    template <class Work>
    static void rows(Crew& crew, size_t first, size_t n, const Work& work) {
        crew.share((n + rows_an_item - 1) / rows_an_item, [&](size_t item, size_t) {
            const size_t end = std::min(n, (item + 1) * rows_an_item);
            for (size_t row = item * rows_an_item; row < end; ++row) work(first + row);
        });
    }

    // A product of the rows that were quantized last, in pieces. Of few rows the weights are what takes time: long runs of
    // them, which the processor's own prefetching follows. Of many, pieces whose rows and weights stay in a core's cache.
    void multiply(Crew& crew, const PackedLinear& linear, ByteProduct product) {
        product.rows = scratch_.bytes.data();
        product.row_scales = scratch_.row_scales.data();
        product.zero_point = linear.input.zero_point;
        product.k_blocks = linear.k_blocks;
        product.weights = linear.weights.data();
        product.scales = linear.scales.data();
        product.biases = linear.biases.data();
        product.column_sums = linear.column_sums.data();
        const size_t n_panels = linear.n_outputs / panel_width;
        const bool few = product.n_rows <= few_rows;
        const size_t row_step = few ? product.n_rows : chunk_rows;
        const size_t row_steps = (product.n_rows + row_step - 1) / row_step;
        const size_t fair = rounded_up((row_steps * n_panels + pieces_ - 1) / pieces_, 2);  // something for everybody
        const size_t panel_step = few ? fair : std::min(fair, most_panels);
        crew.share(row_steps * ((n_panels + panel_step - 1) / panel_step), [&](size_t item, size_t) {
            const size_t row = item % row_steps * row_step, panel = item / row_steps * panel_step;
            kernels_.multiply(product, row, std::min(row_step, product.n_rows - row), panel,
                              std::min(panel_step, n_panels - panel));
        });
    }

    // Rows of y = x W + b, plus those of `residual` where there are some.
    void multiply(Crew& crew, const PackedLinear& linear, size_t n_rows, float* out, const float* residual,
                  bool gelu = false) {
        ByteProduct product{};
        product.n_rows = n_rows;
        product.residual = residual;
        product.gelu = gelu;
        product.out = out;
        product.row_stride = linear.n_outputs;
        product.block_panels = linear.n_outputs / panel_width;
        multiply(crew, linear, product);
    }

    // Queries, keys and values, each head's rows together.
    void project(Crew& crew, const TransformerLayer& layer, const Group& group) {
        rows(crew, 0, group.n_rows, [&](size_t row) { quantize(layer.projections, state(group.first_row + row), row); });
        ByteProduct product{};
        product.n_rows = group.n_rows;
        product.out = scratch_.heads.data();
        product.row_stride = head_width_;
        product.block_panels = head_width_ / panel_width;
        product.block_stride = group.n_rows * head_width_;
        multiply(crew, layer.projections, product);
    }

    void attend(Crew& crew, const Group& group) {
        crew.share(group.heads.size(), [&](size_t item, size_t) { kernels_.pack(attention_of(group, group.heads[item])); });
        crew.share(group.attentions.size(), [&](size_t item, size_t worker) {
            const auto& [number, row] = group.attentions[item];
            const Head& head = group.heads[number];
            HeadAttention attention = attention_of(group, head);
            attention.first_query = row - head.first_row;
            attention.n_queries = std::min(query_block, head.end_row - row);
            attention.scratch = scratch_.attention[worker].data();
            attention.out = attended(row - group.first_row) + head.number * head_width_;
            attention.out_stride = model_.width;
            kernels_.attend(attention);
        });
    }

    // That of a head, without a block of queries.
    HeadAttention attention_of(const Group& group, const Head& head) {
        const size_t part = group.n_rows * head_width_;
        const float* rows = scratch_.heads.data() + head.number * part + (head.first_row - group.first_row) * head_width_;
        HeadAttention attention{};
        attention.queries = rows;
        attention.keys = rows + model_.n_heads * part;
        attention.values = rows + 2 * model_.n_heads * part;
        attention.n_tokens = head.end_row - head.first_row;
        attention.head_width = head_width_;
        attention.packed = scratch_.packed.data() + head.packed;
        return attention;
    }

    // What follows a layer's attention, for n rows; of_group: where in their group they begin
    void feed_forward(Crew& crew, const TransformerLayer& layer, size_t first, size_t of_group, size_t n) {
        float *sums = scratch_.sums.data(), *inner = scratch_.inner.data();
        const size_t inner_width = layer.inner.n_outputs;
        rows(crew, 0, n, [&](size_t row) { quantize(layer.attention_output, attended(of_group + row), row); });
        multiply(crew, layer.attention_output, n, sums, state(first));
        rows(crew, 0, n, [&](size_t row) {
            normalize(sums + row * model_.width, layer.attention_norm, state(first + row));
            quantize(layer.inner, state(first + row), row);
        });
        multiply(crew, layer.inner, n, inner, nullptr, true);
        rows(crew, 0, n, [&](size_t row) { quantize(layer.output, inner + row * inner_width, row); });
        multiply(crew, layer.output, n, sums, state(first));
        rows(crew, 0, n, [&](size_t row) { normalize(sums + row * model_.width, layer.output_norm, state(first + row)); });
    }

    void pool(Crew& crew) {
        crew.share(batch_.starts.size() - 1, [&](size_t text, size_t) {
            float* out = outputs_.dense + text * model_.width;
            std::fill_n(out, model_.width, 0.0f);
            for (size_t row = batch_.starts[text]; row < batch_.starts[text + 1]; ++row)
                if (model_.mean_pooling || batch_.tokens[row].is_cls)
                    for (size_t k = 0; k < model_.width; ++k) out[k] += state(row)[k];
            kernels_.to_unit_length(out, model_.width);  // of a sum it is that of the mean
        });
    }

    void weigh(Crew& crew) {
        rows(crew, 0, batch_.tokens.size(), [&](size_t row) {
            float weight = 0;
            for (size_t k = 0; k < model_.width; ++k) weight += state(row)[k] * model_.sparse_head[k];
            outputs_.weights[batch_.tokens[row].place] = std::max(0.0f, weight + model_.sparse_bias);
        });
    }

    // Of few rows, a few outputs an item, so that there is something for everybody.
    void make_token_vectors(Crew& crew) {
        const FloatHead& head = model_.token_head;
        const size_t n_rows = batch_.tokens.size(), n_panels = head.n_outputs / panel_width;
        const size_t panel_step = n_rows <= few_rows ? 4 : n_panels, panel_steps = (n_panels + panel_step - 1) / panel_step;
        const size_t row_steps = (n_rows + tile_rows - 1) / tile_rows;
        crew.share(row_steps * panel_steps, [&](size_t item, size_t) {
            const size_t panel = item % panel_steps * panel_step, first = item / panel_steps * tile_rows;
            for (size_t row = first, end = std::min(n_rows, first + tile_rows); row < end;) {
                const size_t n = neighbours(row, end);
                kernels_.multiply_floats(state(row), n, head.n_inputs, head.weights.data(), head.biases.data(), panel,
                                         std::min(panel_step, n_panels - panel), token_vector(row), head.n_outputs);
                row += n;
            }
        });
        rows(crew, 0, n_rows, [&](size_t row) { kernels_.to_unit_length(token_vector(row), head.n_outputs); });
    }

    // How many rows from `row` on, before `end`, are neighbours in the outputs as they are here.
    size_t neighbours(size_t row, size_t end) const {
        const std::vector<Batch::Token>& tokens = batch_.tokens;
        size_t next = row + 1;
        while (next < end && tokens[next].place == tokens[next - 1].place + 1) ++next;
        return next - row;
    }

    float* token_vector(size_t row) const {
        return outputs_.tokens + batch_.tokens[row].place * model_.token_head.n_outputs;
    }

    const TransformerModel& model_;
    const Batch& batch_;
    const TransformerOutputs& outputs_;
    Scratch& scratch_;
    const TransformerKernels& kernels_;
    const size_t head_width_;
    const size_t pieces_;  // of a product, where it has as many
    std::vector<Group> groups_;
};

Transformer::Transformer(TransformerModel model) : model_(std::move(model)) {
    const size_t width = model_.width;
    check(width > 0 && model_.n_heads > 0 && width % model_.n_heads == 0 && width / model_.n_heads % panel_width == 0,
          "a head's width must be a multiple of 16");
    const auto is_norm = [&](const Norm& norm) { return norm.weights.size() == width && norm.biases.size() == width; };
    const auto is_linear = [](const PackedLinear& linear, size_t inputs, size_t outputs) {
        return linear.n_inputs == inputs && linear.n_outputs == outputs &&
               (linear.smoothing.empty() || linear.smoothing.size() == inputs);
    };
    check(model_.token_type.size() == width && is_norm(model_.embedding_norm), "the embeddings' widths must be one");
    check(model_.sparse_head.size() == width && model_.token_head.n_inputs == width, "the heads' widths must be the model's");
    products_a_token_ = double(width) * double(model_.token_head.n_outputs);
    for (TransformerLayer& layer : model_.layers) {
        const size_t inner = layer.inner.n_outputs;
        check(is_linear(layer.projections, width, 3 * width) && is_linear(layer.attention_output, width, width) &&
                  is_linear(layer.inner, width, inner) && is_linear(layer.output, inner, width) &&
                  is_norm(layer.attention_norm) && is_norm(layer.output_norm),
              "a layer's widths must be the model's");
        products_a_token_ += double(width) * double(4 * width + 2 * inner);
        for (PackedLinear* linear : {&layer.projections, &layer.attention_output, &layer.inner, &layer.output})
            linear->input.smoothing = linear->smoothing.empty() ? nullptr : linear->smoothing.data();
    }
}

Transformer::~Transformer() = default;

void Transformer::run(const int64_t* ids, const int64_t* mask, size_t batch, size_t sequence, size_t n_threads,
                      const TransformerOutputs& outputs) const {
    const Batch texts(model_, ids, mask, batch, sequence);
    std::unique_ptr<Scratch> scratch;
    {
        const std::lock_guard<std::mutex> held(lock_);
        if (!idle_.empty()) {
            scratch = std::move(idle_.back());
            idle_.pop_back();
        }
    }
    if (scratch == nullptr) scratch = std::make_unique<Scratch>();
    const double products = products_a_token_ * double(texts.tokens.size());
    const size_t n_workers = workers_worth(products, min_products_a_thread, n_threads, n_threads);
    Run run(model_, texts, outputs, *scratch, n_workers);
    Crew::run(n_workers, run);
    if (scratch->held() > kept_bytes) return;
    const std::lock_guard<std::mutex> held(lock_);
    idle_.push_back(std::move(scratch));
}

}  // namespace m3edge
