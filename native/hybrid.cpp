#include "hybrid.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "crew.h"
#include "ordered.h"
#include "parallel.h"

namespace m3edge {
namespace {

constexpr float no_score = std::numeric_limits<float>::quiet_NaN();
constexpr size_t documents_an_item = 4;

enum class Compared { before, same, damaged };

// A document that was put forward, with the scores that are known by then, and whether its tokens are what was written.
struct Candidate {
    int64_t position;
    float dense = no_score, tokens = no_score;
    Compared compared = Compared::before;
};

constexpr auto is_before = [](const auto& a, const auto& b) { return a.position < b.position; };

enum Part { dense_part, lexical_part, tokens_part };

class Search {
  public:
    Search(const HybridParts& parts, size_t n_workers) : parts_(parts), n_workers_(n_workers), spent_(n_workers) {}

    // While one worker asks the graph, all others search the postings, which it joins when it is done. Then all share the
    // scores that are left. What the postings' search needs is made while the other threads start.
    void operator()(Crew& crew) {
        if (parts_.lexical) prepare_postings();
        // In this order: the postings, for the first who comes; the graph; the query's tokens; the postings, for the others
        const size_t first = parts_.lexical ? 0 : 1;
        crew.share(2 + (parts_.lexical ? n_workers_ : 0), [this, first](size_t item, size_t worker) {
            double* seconds = spent_[worker].seconds;
            if (item + first == 1) return timed(seconds[dense_part], [&] { find_nearest(); });
            if (item + first == 2) return timed(seconds[tokens_part], [&] { prepare_tokens(); });
            timed(seconds[lexical_part], [&] { postings_->work(item == 0 ? 0 : item - 2); });
        });
        if (scores_.is_graph_left) return;
        unite();
        const size_t n = parts_.tokens ? candidates_.size() : 0;
        const size_t n_items = (n + documents_an_item - 1) / documents_an_item;
        crew.share(2 + n_items, [this, n](size_t item, size_t worker) {
            double* seconds = spent_[worker].seconds;
            if (item == 0) return timed(seconds[dense_part], [&] { score_vectors(); });
            if (item == 1) return timed(seconds[lexical_part], [&] { score_lexical(); });
            const size_t first = (item - 2) * documents_an_item;
            timed(seconds[tokens_part], [&] { score_tokens(first, std::min(first + documents_an_item, n), worker); });
        });
        finish();
    }

    HybridScores& scores() { return scores_; }

  private:
    struct alignas(64) Spent {  // each worker writes to its own
        double seconds[3] = {};
    };

    // Adds to `seconds` what `work` takes.
    template <class Work>
    static void timed(double& seconds, const Work& work) {
        using Clock = std::chrono::steady_clock;
        const Clock::time_point start = Clock::now();
        work();
        seconds += std::chrono::duration<double>(Clock::now() - start).count();
    }

    void prepare_postings() {
        const LexicalPart& lexical = *parts_.lexical;
        timed(spent_[0].seconds[lexical_part], [&] {
            postings_ = PostingSearch::of(lexical.blocks, lexical.query, lexical.norms, parts_.allowed, lexical.k, n_workers_);
        });
    }

    void prepare_tokens() {
        if (!parts_.tokens) return;
        const TokenPart& tokens = *parts_.tokens;
        maxsim_.emplace(tokens.query, tokens.n_tokens, tokens.dim, tokens.records, n_workers_);
    }

    void find_nearest() {
        if (parts_.graph)
            scores_.is_graph_left = !ask_graph(*parts_.graph);
        else
            for (int64_t position : parts_.nearest) nearest_.push_back({position});
        std::sort(nearest_.begin(), nearest_.end(), is_before);
    }

    bool ask_graph(const GraphPart& graph) {
        const auto found = graph_candidates(parts_.dense->query, graph.rows, *graph.links, parts_.allowed, graph.effort,
                                            graph.most);
        if (!found) return false;
        if (found->size() < graph.k &&
            found->size() < size_t(std::count(parts_.allowed, parts_.allowed + graph.links->n, true)))
            return false;
        std::vector<float> dense(found->size());
        dense_scores(parts_.dense->query, parts_.dense->vectors, parts_.dense->dim, found->data(), found->size(),
                     dense.data());
        for (size_t i = 0; i < found->size(); ++i) {
            nearest_.push_back({(*found)[i]});
            nearest_.back().dense = dense[i];
        }
        const size_t k = std::min(graph.k, nearest_.size());
        const auto scores_more = [](const Candidate& a, const Candidate& b) {
            const float of_a = ordered(a.dense), of_b = ordered(b.dense);
            return of_a != of_b ? of_a > of_b : a.position < b.position;
        };
        std::nth_element(nearest_.begin(), nearest_.begin() + ptrdiff_t(k), nearest_.end(), scores_more);
        nearest_.resize(k);
        return true;
    }

    // Both lists become one, ascending. What only the postings put forward has no dense score yet.
    void unite() {
        if (postings_) hits_ = postings_->hits();
        std::sort(hits_.begin(), hits_.end(), is_before);
        candidates_.reserve(nearest_.size() + hits_.size());
        size_t hit = 0;
        for (const Candidate& candidate : nearest_) {
            for (; hit < hits_.size() && hits_[hit].position < candidate.position; ++hit)
                candidates_.push_back({hits_[hit].position});
            if (hit < hits_.size() && hits_[hit].position == candidate.position) ++hit;
            if (candidates_.empty() || candidates_.back().position != candidate.position) candidates_.push_back(candidate);
        }
        for (; hit < hits_.size(); ++hit) candidates_.push_back({hits_[hit].position});
        for (const Candidate& candidate : candidates_) scores_.positions.push_back(candidate.position);
    }

    void score_vectors() {
        if (!parts_.dense) return;
        std::vector<int64_t> unknown;
        for (const Candidate& candidate : candidates_)
            if (std::isnan(candidate.dense)) unknown.push_back(candidate.position);
        std::vector<float> found(unknown.size());
        dense_scores(parts_.dense->query, parts_.dense->vectors, parts_.dense->dim, unknown.data(), unknown.size(),
                     found.data());
        size_t next = 0;
        for (const Candidate& candidate : candidates_) {
            const bool was_unknown = next < unknown.size() && unknown[next] == candidate.position;
            scores_.dense.push_back(was_unknown ? found[next++] : candidate.dense);
        }
    }

    void score_lexical() {
        if (!parts_.lexical) return;
        std::vector<int64_t> unknown;
        size_t hit = 0;
        for (const Candidate& candidate : candidates_) {
            const bool is_hit = hit < hits_.size() && hits_[hit].position == candidate.position;
            is_hit ? void(++hit) : unknown.push_back(candidate.position);
        }
        std::vector<int64_t> found(unknown.size());
        score_postings(parts_.lexical->blocks, parts_.lexical->query, parts_.lexical->norms, unknown.data(),
                       unknown.size(), found.data());
        size_t next = hit = 0;
        for (const Candidate& candidate : candidates_) {
            const bool was_unknown = next < unknown.size() && unknown[next] == candidate.position;
            const int64_t sum = was_unknown ? found[next++] : hits_[hit++].score;
            scores_.lexical.push_back(float(double(sum) * parts_.lexical->scale));
        }
    }

    void score_tokens(size_t first, size_t last, size_t worker) {
        for (size_t i = first; i < last; ++i)
            score_tokens(candidates_[i], candidates_[i + 1 < last ? i + 1 : i].position, worker);
    }

    // next: the document whose tokens will be wanted after this one's
    void score_tokens(Candidate& candidate, int64_t next, size_t worker) {
        const TokenPart& tokens = *parts_.tokens;
        const bool is_placed = tokens.is_placed(candidate.position);
        if (!tokens.sound[candidate.position]) {
            candidate.compared = is_placed && tokens.is_same(candidate.position) ? Compared::same : Compared::damaged;
            if (candidate.compared == Compared::damaged) return;
        }
        if (!is_placed) return misplaced_.store(candidate.position, std::memory_order_relaxed);
        const int64_t start = tokens.starts[candidate.position], count = tokens.counts[candidate.position];
        candidate.tokens = (*maxsim_)(worker, start, count, tokens.is_placed(next) ? tokens.starts[next] : start);
    }

    void finish() {
        scores_.misplaced = misplaced_.load(std::memory_order_relaxed);
        const bool takes_part[] = {parts_.dense.has_value(), parts_.lexical.has_value(), parts_.tokens.has_value()};
        for (const Spent& worker : spent_)
            for (size_t part = 0; part < 3; ++part)
                if (takes_part[part]) scores_.seconds[part] += worker.seconds[part];
        if (!parts_.tokens) return;
        for (const Candidate& candidate : candidates_) {
            scores_.tokens.push_back(candidate.tokens);
            if (candidate.compared == Compared::same) scores_.compared.push_back(candidate.position);
            if (candidate.compared == Compared::damaged) scores_.damaged.push_back(candidate.position);
        }
    }

    const HybridParts& parts_;
    const size_t n_workers_;
    std::unique_ptr<PostingSearch> postings_;
    std::optional<MaxSim> maxsim_;
    std::vector<PostingHit> hits_;                 // by position
    std::vector<Candidate> nearest_, candidates_;  // the same
    std::atomic<int64_t> misplaced_{-1};
    std::vector<Spent> spent_;
    HybridScores scores_;
};

// How many are worth their start: all, unless there are few documents, and few products with their tokens.
size_t workers_for(const HybridParts& parts, size_t n_threads) {
    constexpr size_t many_documents = 500;
    constexpr double min_products_a_thread = 8e6;
    if (parts.n_documents >= many_documents) return n_threads;
    double products = 0.0;
    if (parts.tokens)
        for (size_t i = 0; i < parts.n_documents; ++i)
            products += double(parts.tokens->counts[i]) * double(parts.tokens->n_tokens * parts.tokens->dim);
    return workers_worth(products, min_products_a_thread, parts.n_documents, n_threads);
}

}  // namespace

HybridScores hybrid_scores(const HybridParts& parts, size_t n_threads) {
    const size_t n_workers = workers_for(parts, n_threads);
    Search search(parts, n_workers);
    Crew::run(n_workers, search);
    return std::move(search.scores());
}

}  // namespace m3edge
