// Every instruction set that this processor has, against plain C++, on made-up numbers: for processors that only an emulator
// has, where Python's tests do not run (`make arm`). Prints what it compared; exits with 1 where something differs.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu.h"
#include "crc32.h"
#include "dense.h"
#include "maxsim.h"
#include "transformer.h"

namespace {

std::mt19937 generator(7);
int failures = 0;

std::vector<float> floats(size_t n, float spread = 1.0f) {
    std::normal_distribution<float> normal(0.0f, spread);
    std::vector<float> values(n);
    for (float& value : values) value = normal(generator);
    return values;
}

std::vector<int8_t> bytes(size_t n) {
    std::uniform_int_distribution<int> any(-127, 127);
    std::vector<int8_t> values(n);
    for (int8_t& value : values) value = int8_t(any(generator));
    return values;
}

void compare(const char* what, const std::vector<float>& plain, const std::vector<float>& other, float tolerance) {
    float largest = 0.0f;
    for (size_t i = 0; i < plain.size(); ++i) largest = std::fmax(largest, std::fabs(plain[i] - other[i]));
    const bool same = plain.size() == other.size() && largest <= tolerance;
    failures += !same;
    std::printf("  %-28s %s, largest difference %g\n", what, same ? "as plain" : "DIFFERS", largest);
}

// Scores of a few documents, of every width and number of tokens that leaves something over.
std::vector<float> maxsim_scores(int bits, size_t dim) {
    generator.seed(unsigned(dim) + unsigned(bits));
    const size_t n_records = 90, n_tokens = 21;
    const size_t code_bytes = (dim * size_t(bits) + 7) / 8;
    const size_t record_bytes = bits == 16 ? code_bytes : 4 + (code_bytes + 3) / 4 * 4;
    std::vector<uint8_t> records(n_records * record_bytes);
    const std::vector<int8_t> codes = bytes(records.size());
    std::memcpy(records.data(), codes.data(), records.size());
    for (size_t i = 0; i < n_records; ++i) {
        const float scale = 0.01f * float(i + 1);
        if (bits != 16) std::memcpy(&records[i * record_bytes], &scale, sizeof scale);
        for (size_t k = 0; bits == 16 && k < dim; ++k) records[i * record_bytes + 2 * k + 1] &= 0xbf;  // no infinities
    }
    const std::vector<int64_t> starts = {0, 1, 8, 40, 90}, counts = {1, 7, 32, 50, 0};
    const std::vector<float> query = floats(n_tokens * dim);
    std::vector<float> scores(starts.size());
    m3edge::maxsim(query.data(), n_tokens, dim, {records.data(), record_bytes, bits}, starts.data(), counts.data(),
                   starts.size(), 2, scores.data());
    return scores;
}

std::vector<float> dense_bounds(size_t dim) {
    generator.seed(unsigned(dim));
    const size_t n = 333;
    const std::vector<float> vectors = floats(n * dim), query = floats(dim);
    std::vector<int8_t> codes(n * dim);
    std::vector<float> scales(n), errors(n), result;
    m3edge::dense_codes(vectors.data(), n, dim, 2, codes.data(), scales.data(), errors.data());
    std::vector<char> allowed(n, 1);
    const m3edge::DenseCodes rows{codes.data(), scales.data(), errors.data(), n, dim};
    for (const auto& found : m3edge::dense_candidates(query.data(), rows, reinterpret_cast<bool*>(allowed.data()), 10, 2)) {
        result.push_back(float(found.position));
        result.push_back(float(found.upper()));
    }
    return result;
}

// Of every length that leaves something over, from anywhere; in halves, which a float holds exactly.
std::vector<float> checksums() {
    generator.seed(1);
    const std::vector<int8_t> data = bytes(4099);
    std::vector<float> result;
    for (size_t start : {0, 1, 7})
        for (size_t n : {0, 1, 8, 15, 16, 63, 64, 100, 4092}) {
            const uint32_t found = m3edge::crc32(reinterpret_cast<const uint8_t*>(data.data()) + start, n, 77);
            result.push_back(float(found >> 16));
            result.push_back(float(found & 0xffff));
        }
    return result;
}

struct Linear {
    std::vector<int8_t> codes;
    std::vector<float> scales, bias;
    size_t inputs, outputs;

    Linear(size_t inputs_, size_t outputs_)
        : codes(bytes(inputs_ * outputs_)), scales(outputs_, 1.0f / (73.0f * std::sqrt(float(inputs_)))),
          bias(floats(outputs_, 0.1f)), inputs(inputs_), outputs(outputs_) {}

    m3edge::LinearWeights weights() const { return {codes.data(), scales.data(), bias.data(), inputs, outputs}; }
};

m3edge::PackedLinear packed(size_t inputs, size_t outputs, size_t times = 1, int zero_point = 128, float least = -1.0f) {
    const std::vector<Linear> linears(times, Linear(inputs, outputs));
    std::vector<m3edge::LinearWeights> weights;
    for (const Linear& linear : linears) weights.push_back(linear.weights());
    m3edge::PackedLinear result(weights);
    result.input = {nullptr, zero_point, least};
    return result;
}

// All that one layer gives: of more would come, with other sums of rounded numbers, other roundings.
std::vector<float> encoded(size_t width, size_t heads, size_t inner) {
    generator.seed(unsigned(width));
    const size_t n_words = 50, n_positions = 70, batch = 5, sequence = 67, token_width = 32;
    const std::vector<int8_t> words = bytes(n_words * width), positions = bytes(n_positions * width);
    const std::vector<float> word_scales(n_words, 0.01f), position_scales(n_positions, 0.01f);
    const auto norm = [&] { return m3edge::Norm{std::vector<float>(width, 1.0f), floats(width, 0.1f)}; };
    m3edge::TransformerModel model{};
    model.width = width;
    model.n_heads = heads;
    model.epsilon = 1e-5f;
    model.mean_pooling = true;
    model.pad_id = -1;
    model.words = {words.data(), word_scales.data(), n_words};
    model.positions = {positions.data(), position_scales.data(), n_positions};
    model.token_type = floats(width);
    model.embedding_norm = norm();
    model.layers.push_back({packed(width, width, 3), packed(width, width), packed(width, inner),
                            packed(inner, width, 1, 20, 0.17f), norm(), norm()});
    const std::vector<float> head = floats(width * token_width), bias = floats(token_width);
    model.token_head = {head.data(), bias.data(), width, token_width};
    model.sparse_head = floats(width, 0.1f);
    const m3edge::Transformer transformer(std::move(model));
    std::vector<int64_t> ids(batch * sequence), mask(batch * sequence);
    const size_t lengths[batch] = {67, 1, 16, 33, 40};
    for (size_t text = 0; text < batch; ++text)
        for (size_t i = 0; i < lengths[text]; ++i) {
            ids[text * sequence + i] = int64_t(generator() % n_words);
            mask[text * sequence + i] = 1;
        }
    const size_t n_dense = batch * width, n_weights = batch * sequence;
    std::vector<float> out(n_dense + n_weights + n_weights * token_width);
    transformer.run(ids.data(), mask.data(), batch, sequence, 2, {&out[0], &out[n_dense], &out[n_dense + n_weights]});
    return out;
}

// Calls check(name, result of work) for plain C++ and compares each other set's result with it.
template <class Work>
void on_every_set(const std::string& what, float tolerance, const Work& work) {
    m3edge::set_instruction_set(m3edge::InstructionSet::plain);
    const std::vector<float> plain = work();
    for (m3edge::InstructionSet set : m3edge::available_instruction_sets()) {
        m3edge::set_instruction_set(set);
        compare((std::string(m3edge::name_of(set)) + " " + what).c_str(), plain, work(), tolerance);
    }
}

}  // namespace

int main() {
    for (size_t dim : {16, 100, 384})
        for (int bits : {8, 4, 1, 16}) {
            const std::string what = "maxsim " + std::to_string(dim) + " in " + std::to_string(bits) + " bits";
            on_every_set(what, bits == 16 ? 1e-2f : 0.0f, [&] { return maxsim_scores(bits, dim); });
        }
    for (size_t dim : {16, 100, 384})
        on_every_set("dense " + std::to_string(dim), 0.0f, [&] { return dense_bounds(dim); });
    on_every_set("crc32", 0.0f, checksums);
    on_every_set("encoder 64", 0.02f, [] { return encoded(64, 2, 128); });
    on_every_set("encoder 48", 0.02f, [] { return encoded(48, 3, 80); });
    return failures == 0 ? 0 : 1;
}
