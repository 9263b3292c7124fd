#include "dense.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "codes.h"
#include "dense_query.h"
#include "inner_product.h"
#include "parallel.h"
#include "prefetch.h"

namespace m3edge {
namespace {

constexpr double nothing = -std::numeric_limits<double>::infinity();

// Keeps, of a stream of rows, those that could still be among the k best. Aligned, for each worker writes to its own.
class alignas(64) Sieve {
  public:
    // least: rows that cannot score as much are not wanted
    explicit Sieve(size_t k, double least = nothing) : k_(k), room_(std::max<size_t>(4 * k, 1024)), least_(least) {
        kept_.reserve(room_);
    }

    double least() const { return least_; }

    void take(const DenseCandidate& row) {
        kept_.push_back(row);
        if (kept_.size() >= room_) {
            shrink();
            room_ = std::max(room_, 2 * kept_.size());
        }
    }
    // The k-th largest lower bound: so much have k rows at least. `nothing` where there are fewer.
    double kth_lower() const {
        if (kept_.size() < k_) return nothing;
        std::vector<double> lower;
        lower.reserve(kept_.size());
        for (const DenseCandidate& row : kept_) lower.push_back(row.lower());
        std::nth_element(lower.begin(), lower.begin() + (k_ - 1), lower.end(), std::greater<double>());
        return lower[k_ - 1];
    }
    // Drops what the k-th largest lower bound rules out.
    void shrink() {
        if (kept_.size() <= k_) return;
        least_ = std::max(least_, kth_lower());
        kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [this](const auto& row) { return row.upper() < least_; }),
                    kept_.end());
    }
    std::vector<DenseCandidate>& kept() { return kept_; }

  private:
    size_t k_, room_;
    double least_;
    std::vector<DenseCandidate> kept_;
};

// The candidates among some rows.
class Scan {
  public:
    Scan(const DenseQuery& query, const DenseCodes& rows, DotKernel kernel) : query_(query), rows_(rows), kernel_(kernel) {}

    // Takes every step-th row of first ... last.
    // Rows are asked for when they are found and scored when `waiting_rows` others have been: a mask skips rows, and several
    // are read side by side, both of which the processor's own prefetching does not follow.
    void run(size_t first, size_t last, size_t step, const bool* allowed, Sieve& sieve) {
        size_t waiting[waiting_rows], found = 0, scored = 0;
        for (size_t i = first; i < last; i += step) {
            if (!allowed[i]) continue;
            prefetch(rows_.codes + i * rows_.dim, rows_.dim);
            waiting[found++ % waiting_rows] = i;
            if (found - scored < waiting_rows) continue;
            score(waiting + scored % waiting_rows, dot_rows, sieve);
            scored += dot_rows;
        }
        for (; scored < found; scored += dot_rows)
            score(waiting + scored % waiting_rows, std::min(dot_rows, found - scored), sieve);
    }

  private:
    static constexpr size_t waiting_rows = 16;
    static_assert(waiting_rows % dot_rows == 0, "a group must not go round the end");

    void score(const size_t* group, size_t n, Sieve& sieve) {
        const int8_t* pointers[dot_rows];
        int32_t dots[dot_rows];
        for (size_t r = 0; r < dot_rows; ++r) pointers[r] = rows_.codes + group[r < n ? r : 0] * rows_.dim;
        kernel_(pointers, query_.codes.data(), rows_.dim, dots);
        for (size_t r = 0; r < n; ++r) {
            const size_t i = group[r];
            const double scale = rows_.scales[i], score = double(dots[r]) * scale * query_.scale;
            const double slack = rows_.errors[i] * query_.norm + query_.residual * (scale * (127.0 * query_.root));
            if (!(score + slack < sieve.least())) sieve.take({int64_t(i), score, slack});  // also where that is no number
        }
    }

    const DenseQuery& query_;
    const DenseCodes& rows_;
    DotKernel kernel_;
};

constexpr size_t chunk_rows = 2048;
constexpr size_t sample_step = 64;
constexpr double min_products_a_thread = 4e6;

size_t n_chunks(const DenseCodes& rows) { return (rows.n + chunk_rows - 1) / chunk_rows; }

// What the k-th best of all rows will have, or a little less, if every sample_step-th row is like the others: so many of
// the k best are among these, and not many more, by the variance of such draws. Each row that is kept in vain is a
// branch that nobody foresaw, in the middle of reading ahead.
double expected_least(Scan& scan, size_t n, const bool* allowed, size_t k) {
    const double mean = double(k) / double(sample_step);
    Sieve sample(size_t(mean + 4 * std::sqrt(mean) + 8));
    scan.run(0, n, sample_step, allowed, sample);
    return sample.kth_lower();
}

// The candidates, of those that score `least`.
Sieve scan_all(const DenseQuery& codes, const DenseCodes& rows, const bool* allowed, size_t k, double least,
               size_t n_workers) {
    std::vector<Sieve> sieves(n_workers, Sieve(k, least));
    std::atomic<size_t> next{0};
    run_workers(n_workers, [&](size_t worker) {
        Scan scan(codes, rows, dot_kernel());
        for (size_t chunk; (chunk = next++) < n_chunks(rows);)
            scan.run(chunk * chunk_rows, std::min(rows.n, (chunk + 1) * chunk_rows), 1, allowed, sieves[worker]);
    });
    Sieve& all = sieves[0];
    for (size_t worker = 1; worker < n_workers; ++worker)
        all.kept().insert(all.kept().end(), sieves[worker].kept().begin(), sieves[worker].kept().end());
    return std::move(all);
}

// In units of the scale: the lengths of a row and of what its codes leave out of it. Numbers up to 127, whose squares
// overflow nothing.
struct Lengths {
    double whole, left_out;
};
Lengths lengths_of(const float* row, size_t dim, float inverse) {
    constexpr size_t lanes = 16;  // independent sums, of which compilers make vectors
    float squares[lanes] = {}, rests[lanes] = {};
    const auto take = [&](size_t lane, size_t k) {
        const float number = row[k] * inverse, rest = number - ((number + no_fraction) - no_fraction);  // codes_of's
        squares[lane] += number * number;
        rests[lane] += rest * rest;
    };
    size_t k = 0;
    for (; k + lanes <= dim; k += lanes)
        for (size_t lane = 0; lane < lanes; ++lane) take(lane, k + lane);
    for (; k < dim; ++k) take(k % lanes, k);
    Lengths found{};
    for (size_t lane = 0; lane < lanes; ++lane) found.whole += squares[lane], found.left_out += rests[lane];
    return {std::sqrt(found.whole), std::sqrt(found.left_out)};
}

// False, and nothing else, for numbers that are not finite.
bool code_row(const float* row, size_t dim, int8_t* codes, float& scale, float& error) {
    const float largest = largest_magnitude(row, dim);
    if (!std::isfinite(largest)) return false;
    if (largest < 1e-30f) {  // its inverse would overflow; such a row is all 0, and all error
        scale = 0.0f;
        error = largest * std::sqrt(float(dim)) * 1.0001f;
        std::memset(codes, 0, dim);
        return true;
    }
    const float inverse = 127.0f / largest;
    scale = largest / 127.0f;
    codes_of(row, dim, inverse, codes);
    const Lengths lengths = lengths_of(row, dim, inverse);
    // The second part: what summing dim products in float32 can be off by, and the rounding of what was summed here.
    error = float((lengths.left_out + double(dim + 6) * 1.2e-7 * lengths.whole) * double(scale) * 1.0001);
    return true;
}

}  // namespace

bool dense_codes(const float* vectors, size_t n, size_t dim, size_t n_threads, int8_t* codes, float* scales,
                 float* errors) {
    constexpr double min_numbers_a_thread = 2e5;
    constexpr size_t rows_a_chunk = 256;
    const size_t n_chunks = (n + rows_a_chunk - 1) / rows_a_chunk;
    const size_t n_workers = workers_worth(double(n) * double(dim), min_numbers_a_thread, n_chunks, n_threads);
    std::atomic<size_t> next{0};
    std::atomic<bool> all_finite{true};
    run_workers(n_workers, [&](size_t) {
        for (size_t chunk; (chunk = next++) < n_chunks;)
            for (size_t i = chunk * rows_a_chunk; i < std::min(n, (chunk + 1) * rows_a_chunk); ++i)
                if (!code_row(vectors + i * dim, dim, codes + i * dim, scales[i], errors[i])) all_finite = false;
    });
    return all_finite;
}

std::vector<DenseCandidate> dense_candidates(const float* query, const DenseCodes& rows, const bool* allowed, size_t k,
                                             size_t n_threads) {
    const DenseQuery codes(query, rows.dim);
    const size_t n_allowed = size_t(std::count(allowed, allowed + rows.n, true));
    const double products = double(n_allowed) * double(rows.dim);
    const size_t n_workers = workers_worth(products, min_products_a_thread, n_chunks(rows), n_threads);
    Scan scan(codes, rows, dot_kernel());
    const double least = k < n_allowed ? expected_least(scan, rows.n, allowed, k) : nothing;
    Sieve all = scan_all(codes, rows, allowed, k, least, n_workers);
    if (all.kth_lower() < least) all = scan_all(codes, rows, allowed, k, nothing, n_workers);  // it was too much
    all.shrink();
    std::sort(all.kept().begin(), all.kept().end(), [](const DenseCandidate& a, const DenseCandidate& b) {
        return a.score != b.score ? a.score > b.score : a.position < b.position;
    });
    return std::move(all.kept());
}

void dense_scores(const float* query, const float* vectors, size_t dim, const int64_t* positions, size_t n,
                  float* scores) {
    // The rows lie anywhere: each is waited for in whole, unless it was asked for while others were multiplied.
    constexpr size_t rows_ahead = 4;
    const auto ask_for = [&](size_t i) { prefetch(vectors + size_t(positions[i]) * dim, dim * sizeof(float)); };
    for (size_t i = 0; i < std::min(n, rows_ahead); ++i) ask_for(i);
    for (size_t i = 0; i < n; ++i) {
        if (i + rows_ahead < n) ask_for(i + rows_ahead);
        scores[i] = inner_product(vectors + size_t(positions[i]) * dim, query, dim);
    }
}

}  // namespace m3edge
