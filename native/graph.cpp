#include "graph.h"

#include <algorithm>
#include <utility>

#include "dense_query.h"
#include "prefetch.h"

namespace m3edge {
namespace {

struct Node {
    double score;
    uint32_t number;
};

// Equal scores by number: which nodes are found must not depend on anything else.
bool better(const Node& a, const Node& b) { return a.score != b.score ? a.score > b.score : a.number < b.number; }
bool worse(const Node& a, const Node& b) { return better(b, a); }

// The best so many of the nodes that it was given; the worst of them is at hand.
class View {
  public:
    explicit View(size_t room) : room_(room) { nodes_.reserve(room + 1); }

    // Whether a node of this score would be taken.
    bool takes(const Node& node) const { return nodes_.size() < room_ || better(node, nodes_.front()); }
    void take(const Node& node) {
        nodes_.push_back(node);
        std::push_heap(nodes_.begin(), nodes_.end(), better);
        if (nodes_.size() <= room_) return;
        std::pop_heap(nodes_.begin(), nodes_.end(), better);
        nodes_.pop_back();
    }
    std::vector<Node> sorted() && {
        std::sort(nodes_.begin(), nodes_.end(), better);
        return std::move(nodes_);
    }

  private:
    size_t room_;
    std::vector<Node> nodes_;
};

class Walk {
  public:
    Walk(const DenseQuery& query, const DenseCodes& rows, const GraphLinks& links)
        : query_(query), rows_(rows), links_(links), fresh_(std::max(links.ground_width, links.level_width) + dot_rows),
          scored_(fresh_.size()), seen_((links.n + 63) / 64) {}

    // A node near the query, by the levels above the ground: each is entered where the one above it was left.
    Node descend() {
        fresh_[0] = uint32_t(links_.start);
        score(1);
        Node nearest = scored_[0];
        for (size_t level = links_.top_level; level > 0; --level) {
            for (uint32_t from = GraphLinks::no_node; from != nearest.number;) {
                from = nearest.number;
                const uint32_t* row = links_.levels + (links_.level_starts[from] + level - 1) * links_.level_width;
                size_t n = 0;
                for (; n < links_.level_width && row[n] != GraphLinks::no_node; ++n) ask_for(fresh_[n] = row[n]);
                score(n);
                for (size_t i = 0; i < n; ++i)
                    if (better(scored_[i], nearest)) nearest = scored_[i];
            }
        }
        return nearest;
    }

    // Looks at the links of the best node that was found and not followed, until `effort` allowed ones are better.
    // False where that is more than `most` rows.
    bool wander(const Node& start, const bool* allowed, size_t most, View& view) {
        std::vector<Node> open{start};
        is_new(start.number);
        if (allowed[start.number]) view.take(start);
        for (size_t looked_at = 1; !open.empty() && view.takes(open.front());) {
            const uint32_t* row = links_.ground + size_t(open.front().number) * links_.ground_width;
            std::pop_heap(open.begin(), open.end(), worse);
            open.pop_back();
            const size_t n = take_new(row);
            if ((looked_at += n) > most) return false;
            score(n);
            for (size_t i = 0; i < n; ++i) {
                const Node& node = scored_[i];
                if (!view.takes(node)) continue;
                prefetch(links_.ground + size_t(node.number) * links_.ground_width, links_.ground_width * sizeof(uint32_t));
                open.push_back(node);
                std::push_heap(open.begin(), open.end(), worse);
                if (allowed[node.number]) view.take(node);
            }
        }
        return true;
    }

  private:
    bool is_new(uint32_t number) {
        uint64_t& word = seen_[number / 64];
        const uint64_t bit = uint64_t(1) << number % 64;
        const bool result = !(word & bit);
        word |= bit;
        return result;
    }

    // Those nodes of a row of links that were not seen before.
    size_t take_new(const uint32_t* row) {
        size_t n = 0;
        for (size_t i = 0; i < links_.ground_width && row[i] != GraphLinks::no_node; ++i) {
            if (!is_new(row[i])) continue;
            ask_for(row[i]);
            fresh_[n++] = row[i];
        }
        return n;
    }

    // Rows lie anywhere: all of a node's neighbours are asked for before the first is multiplied.
    void ask_for(uint32_t number) const {
        prefetch(rows_.codes + size_t(number) * rows_.dim, rows_.dim);
        prefetch(rows_.scales + number);
    }

    // The first n fresh nodes.
    void score(size_t n) {
        for (size_t r = n; r % dot_rows; ++r) fresh_[r] = fresh_[0];
        for (size_t first = 0; first < n; first += dot_rows) {
            const int8_t* pointers[dot_rows];
            int32_t dots[dot_rows];
            for (size_t r = 0; r < dot_rows; ++r) pointers[r] = rows_.codes + size_t(fresh_[first + r]) * rows_.dim;
            kernel_(pointers, query_.codes.data(), rows_.dim, dots);
            for (size_t r = 0; r < dot_rows; ++r) {
                const uint32_t number = fresh_[first + r];
                scored_[first + r] = {double(dots[r]) * double(rows_.scales[number]) * query_.scale, number};
            }
        }
    }

    const DenseQuery& query_;
    const DenseCodes& rows_;
    const GraphLinks& links_;
    const DotKernel kernel_ = dot_kernel();
    std::vector<uint32_t> fresh_;  // the nodes that are looked at, filled up to whole groups
    std::vector<Node> scored_;     // they, with their scores
    std::vector<uint64_t> seen_;   // on the ground; a bit each
};

}  // namespace

bool GraphLinks::is_sound(size_t n_level_rows) const {
    if (n == 0) return n_level_rows == 0;
    if (level_starts[0] != 0 || level_starts[n] != n_level_rows || start >= n) return false;
    for (size_t i = 0; i < n; ++i)
        if (level_starts[i + 1] < level_starts[i] || level_starts[i + 1] > n_level_rows) return false;
    if (top_level > n_levels(start)) return false;
    for (size_t i = 0; i < n * ground_width; ++i)
        if (ground[i] != no_node && ground[i] >= n) return false;
    for (size_t node = 0; node < n; ++node)
        for (size_t level = 1; level <= n_levels(node); ++level)
            for (size_t i = 0; i < level_width; ++i) {
                const uint32_t target = levels[(level_starts[node] + level - 1) * level_width + i];
                if (target != no_node && (target >= n || n_levels(target) < level)) return false;
            }
    return true;
}

std::optional<std::vector<int64_t>> graph_candidates(const float* query, const DenseCodes& rows, const GraphLinks& links,
                                                     const bool* allowed, size_t effort, size_t most) {
    if (links.n == 0) return std::vector<int64_t>{};
    const DenseQuery codes(query, rows.dim);
    Walk walk(codes, rows, links);
    View view(effort);
    if (!walk.wander(walk.descend(), allowed, most, view)) return std::nullopt;
    std::vector<int64_t> found;
    for (const Node& node : std::move(view).sorted()) found.push_back(int64_t(node.number));
    return found;
}

}  // namespace m3edge
