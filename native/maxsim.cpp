#include "maxsim.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "aligned.h"
#include "codes.h"
#include "cpu.h"
#include "maxsim_tile.h"
#include "parallel.h"

namespace m3edge {
namespace {

const TileKernel& tile_kernel() {
    return *Kernels<const TileKernel*>{tile_kernel_plain(), tile_kernel_avx2(), tile_kernel_avxvnni(),
                                       tile_kernel_avx512vnni(), tile_kernel_amx(), tile_kernel_neon()}
                .in_use();
}

const FloatKernel& float_kernel() {
    return *Kernels<const FloatKernel*>{float_kernel_plain(),      float_kernel_avx2(), nullptr,
                                        float_kernel_avx512vnni(), nullptr,             float_kernel_neon()}
                .in_use();
}

struct PackedQuery {
    Aligned<uint8_t> lines;     // as Tile::query, with lines_behind_query more
    std::vector<float> scales;  // [n_tokens]
    size_t n_blocks;

    const uint8_t* codes() const { return lines.data(); }
};

// Room for n_tokens rows of `width` bytes, as a tile kernel wants them; every byte is the kernel's code of 0.
PackedQuery room_for(size_t n_tokens, size_t width, const TileKernel& kernel) {
    const size_t lanes = kernel.block_lanes;
    PackedQuery packed;
    packed.n_blocks = (n_tokens + lanes - 1) / lanes;
    packed.scales.assign(n_tokens, 0.0f);
    packed.lines.grow((packed.n_blocks * lanes * width / cache_line + lines_behind_query) * cache_line);
    std::memset(packed.lines.data(), kernel.query_offset, packed.lines.bytes());
    return packed;
}

PackedQuery pack_bytes(const float* query, size_t n_tokens, size_t dim, size_t width, const TileKernel& kernel) {
    const size_t lanes = kernel.block_lanes;
    PackedQuery packed = room_for(n_tokens, width, kernel);
    std::vector<int8_t> codes(width);
    for (size_t token = 0; token < n_tokens; ++token) {
        const float* row = query + token * dim;
        const float largest = largest_magnitude(row, dim);
        if (largest < 1e-30f) continue;  // its inverse would overflow; such a token scores 0
        packed.scales[token] = largest / 127.0f;
        codes_of(row, dim, 127.0f / largest, codes.data());
        for (int8_t& code : codes) code = int8_t(code + kernel.query_offset);
        uint8_t* block = packed.lines.data() + token / lanes * lanes * width + token % lanes * 4;
        for (size_t k = 0; k < width; k += 4) std::memcpy(block + k * lanes, &codes[k], 4);
        std::fill(codes.begin(), codes.end(), int8_t(0));
    }
    return packed;
}

PackedQuery pack_floats(const float* query, size_t n_tokens, size_t dim, const TileKernel& kernel) {
    const size_t lanes = kernel.block_lanes;
    PackedQuery packed = room_for(n_tokens, dim * sizeof(float), kernel);
    float* floats = reinterpret_cast<float*>(packed.lines.data());
    for (size_t token = 0; token < n_tokens; ++token) {
        packed.scales[token] = 1.0f;
        float* block = floats + token / lanes * lanes * dim + token % lanes;
        for (size_t k = 0; k < dim; ++k) block[k * lanes] = query[token * dim + k];
    }
    return packed;
}

// The codes of one record, one byte each.
void unpack_codes(const uint8_t* codes, size_t n_bytes, int bits, int8_t* out) {
    if (bits == 4) {
        for (size_t j = 0; j < n_bytes; ++j) out[j] = int8_t((codes[j] & 15) - 8);
        for (size_t j = 0; j < n_bytes; ++j) out[n_bytes + j] = int8_t((codes[j] >> 4) - 8);
    } else {
        for (int plane = 0; plane < 8; ++plane) {
            const uint8_t mask = uint8_t(1 << plane);
            for (size_t j = 0; j < n_bytes; ++j) {
                const uint8_t bit = codes[j] & mask;  // compared as a byte: no vector of bytes can be shifted
                out[plane * n_bytes + j] = bit == mask ? 1 : -1;
            }
        }
    }
}

class DocumentScorer {
  public:
    DocumentScorer(const PackedQuery& query, const Records& records, const TileKernel& kernel)
        : query_(query), records_(records), kernel_(kernel), widen_(float_kernel().widen),
          best_(query.n_blocks * kernel.block_lanes) {
        if (records.bits != 8) unpacked_.grow(kernel.rows * row_bytes() + cache_line);
    }

    // next: the first record that will be wanted after this document
    float operator()(int64_t start, int64_t count, int64_t next) {
        if (count == 0 || query_.scales.empty()) return 0.0f;
        std::fill(best_.begin(), best_.end(), -std::numeric_limits<float>::infinity());
        for (int64_t row = 0; row < count; row += kernel_.rows) {
            const int64_t after = row + kernel_.rows < count ? start + row + kernel_.rows : next;
            take(record(start + row), int(std::min<int64_t>(kernel_.rows, count - row)), record(after));
        }
        double sum = 0.0;
        for (size_t token = 0; token < query_.scales.size(); ++token) sum += best_[token] * query_.scales[token];
        return float(sum / double(query_.scales.size()));
    }

  private:
    const uint8_t* record(int64_t number) const { return records_.data + number * records_.record_bytes; }

    // What a tile reads of a row.
    size_t row_bytes() const { return records_.width() * (records_.bits == 16 ? sizeof(float) : 1); }

    void take(const uint8_t* record, int n_rows, const uint8_t* next) {
        Tile tile;
        if (records_.bits == 8) {
            tile.rows = reinterpret_cast<const int8_t*>(record + records_.scale_bytes());
            tile.stride = records_.record_bytes;
            tile.next = reinterpret_cast<const int8_t*>(next);
        } else {
            int8_t* rows = unpacked_.data();
            for (int r = 0; r < n_rows; ++r)
                unpack(record + r * records_.record_bytes + records_.scale_bytes(), rows + r * row_bytes());
            tile.rows = rows;
            tile.stride = row_bytes();
            tile.next = rows;
        }
        tile.n_rows = n_rows;
        static constexpr float one = 1.0f;
        const bool scaled = records_.scale_bytes() != 0;
        tile.scales = scaled ? record : reinterpret_cast<const uint8_t*>(&one);
        tile.scale_stride = scaled ? records_.record_bytes : 0;
        tile.width = row_bytes();
        tile.query = query_.codes();
        tile.n_blocks = query_.n_blocks;
        tile.best = best_.data();
        kernel_.run(tile);
    }

    void unpack(const uint8_t* codes, int8_t* out) const {
        if (records_.bits == 16)
            widen_(codes, records_.width(), reinterpret_cast<float*>(out));
        else
            unpack_codes(codes, records_.code_bytes(), records_.bits, out);
    }

    const PackedQuery& query_;
    const Records& records_;
    const TileKernel& kernel_;
    decltype(FloatKernel::widen) widen_;
    std::vector<float> best_;
    Aligned<int8_t> unpacked_;
};

constexpr double min_products_a_thread = 8e6;

PackedQuery packed(const float* query, size_t n_tokens, size_t dim, const Records& records) {
    return records.bits == 16 ? pack_floats(query, n_tokens, dim, float_kernel().tile)
                              : pack_bytes(query, n_tokens, dim, records.width(), tile_kernel());
}

}  // namespace

struct MaxSim::Workers {
    PackedQuery query;
    Records records;
    std::vector<DocumentScorer> scorers;
};

MaxSim::MaxSim(const float* query, size_t n_tokens, size_t dim, const Records& records, size_t n_workers)
    : workers_(new Workers{packed(query, n_tokens, dim, records), records, {}}) {
    const TileKernel& kernel = records.bits == 16 ? float_kernel().tile : tile_kernel();
    for (size_t i = 0; i < n_workers; ++i) workers_->scorers.emplace_back(workers_->query, workers_->records, kernel);
}

MaxSim::~MaxSim() = default;

float MaxSim::operator()(size_t worker, int64_t start, int64_t count, int64_t next) {
    return workers_->scorers[worker](start, count, next);
}

void maxsim(const float* query, size_t n_tokens, size_t dim, const Records& records, const int64_t* starts,
            const int64_t* counts, size_t n_documents, size_t n_threads, float* scores) {
    double products = 0.0;
    for (size_t i = 0; i < n_documents; ++i) products += double(counts[i]) * double(n_tokens * dim);
    const size_t n_workers = workers_worth(products, min_products_a_thread, n_documents, n_threads);
    MaxSim scorer(query, n_tokens, dim, records, n_workers);
    std::atomic<size_t> next{0};
    run_workers(n_workers, [&](size_t worker) {
        for (size_t i = next++, after; i < n_documents; i = after) {
            after = next++;
            scores[i] = scorer(worker, starts[i], counts[i], starts[after < n_documents ? after : i]);
        }
    });
}

}  // namespace m3edge
