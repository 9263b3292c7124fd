// Attention, a head's block of queries at a time: its products with keys and with values are products of tiles and panels,
// as those of a layer's rows with its weights are. Softmax goes block by block of keys with the largest score so far, so that
// nothing but the head's keys and values is as long as the text.
//
// Keys and values are brought into panels once for all queries, in numbers of the kind that an instruction set multiplies
// fastest: float32, bfloat16, or 16-bit whole numbers with a scale for each key and each of the values' columns.
#pragma once

#include "transformer_products.h"

#if defined(__GNUC__)

namespace m3edge {
namespace {  // a copy for each file, compiled for its instruction set

constexpr size_t key_block = 128;  // keys between two looks at the largest score

// E, how numbers are multiplied: Element; Products; `scaled`, whether elements are whole numbers; most_share, what a weight
// of 1 becomes; most_score(width) and most_value, the largest elements of queries and keys and of values; put, from a
// register to elements; numbers, from a tile's sums.
template <class E>
struct Attention {
    using Element = typename E::Element;
    using Products = typename E::Products;
    static constexpr size_t depth = tile_depth / sizeof(Element), group = 4 / sizeof(Element);

    static M3EDGE_INLINE size_t least(size_t a, size_t b) { return a < b ? a : b; }

    // A head's packed part: where its arrays begin, in multiples of 64 bytes. Tokens and the keys' width are filled up with
    // zeros.
    struct Packed {
        size_t tokens, width, keys = 0, values, key_scales, value_scales, bytes;

        M3EDGE_INLINE Packed(size_t n_tokens, size_t head_width)
            : tokens(rounded_up(n_tokens, depth)), width(rounded_up(head_width, depth)), values(tokens * width * sizeof(Element)),
              key_scales(values + tokens * head_width * sizeof(Element)), value_scales(key_scales + tokens * sizeof(float)),
              bytes(value_scales + head_width * sizeof(float)) {}

        // Panels of keys from token `first` on, [k blocks of the width].
        M3EDGE_INLINE size_t keys_from(size_t first) const { return keys + first * width * sizeof(Element); }
        // Panels of the values' columns of a block of tokens, [k blocks of the tokens].
        M3EDGE_INLINE size_t values_from(size_t first, size_t head_width) const {
            return values + first * head_width * sizeof(Element);
        }
    };

    static size_t packed_bytes(size_t n_tokens, size_t head_width) { return Packed(n_tokens, head_width).bytes; }

    static void pack(const HeadAttention& head) {
        const Packed packed(head.n_tokens, head.head_width);
        pack_keys(head, packed);
        find_value_scales(head, packed);
        for (size_t first = 0; first < packed.tokens; first += key_block) pack_values(head, packed, first);
    }

    static void pack_keys(const HeadAttention& head, const Packed& packed) {
        float* scales = (float*)(head.packed + packed.key_scales);
        for (size_t token = 0; token < packed.tokens; token += panel_width) {
            const size_t n = least(head.n_tokens > token ? head.n_tokens - token : 0, panel_width);
            float inverse[panel_width] = {};
            for (size_t i = 0; i < n; ++i) {
                const float scale = scale_of(head.keys + (token + i) * head.head_width, head.head_width);
                scales[token + i] = scale;
                inverse[i] = 1 / scale;
            }
            for (size_t k = 0; k < packed.width; k += depth) {
                alignas(64) Element rows[panel_width][depth] = {};
                const size_t columns = least(head.head_width - k, depth);
                for (size_t i = 0; i < n; ++i)
                    for (size_t j = 0; j < columns; j += lanes)
                        E::put(rows[i] + j, load<Floats>(head.keys + (token + i) * head.head_width + k + j) * inverse[i]);
                uint8_t* out = head.packed + packed.keys_from(token) + k / depth * panel_bytes;
                for (size_t four = 0; four < tile_depth / 4; ++four)
                    for (size_t i = 0; i < panel_width; ++i)
                        store(out + (four * panel_width + i) * 4, load<int32_t>(rows[i] + four * group));
            }
        }
    }

    static void find_value_scales(const HeadAttention& head, const Packed& packed) {
        float* scales = (float*)(head.packed + packed.value_scales);
        for (size_t j = 0; j < head.head_width; j += lanes) {
            Floats most = Floats{};
            if constexpr (E::scaled)
                for (size_t token = 0; token < head.n_tokens; ++token)
                    most = larger(most, magnitude(load<Floats>(head.values + token * head.head_width + j)));
            store(scales + j, E::scaled ? larger(most * (1 / E::most_value), all(1e-30f)) : all(1));
        }
    }

    // The values of a block of keys.
    static void pack_values(const HeadAttention& head, const Packed& packed, size_t first) {
        const float* scales = (const float*)(head.packed + packed.value_scales);
        const size_t n = least(packed.tokens - first, key_block);
        for (size_t j = 0; j < head.head_width; j += panel_width) {
            Floats inverse[panel_width / lanes];
            for (size_t c = 0; c < panel_width; c += lanes) inverse[c / lanes] = 1 / load<Floats>(scales + j + c);
            uint8_t* out = head.packed + packed.values_from(first, head.head_width) + j * n * sizeof(Element);
            for (size_t token = first; token < first + n; token += group, out += 4 * panel_width) {
                alignas(64) Element rows[group][panel_width] = {};
                for (size_t i = 0; i < group && token + i < head.n_tokens; ++i)
                    for (size_t c = 0; c < panel_width; c += lanes)
                        E::put(rows[i] + c,
                               load<Floats>(head.values + (token + i) * head.head_width + j + c) * inverse[c / lanes]);
                Element* to = (Element*)out;
                for (size_t c = 0; c < panel_width; ++c)
                    for (size_t i = 0; i < group; ++i) to[c * group + i] = rows[i][c];
            }
        }
    }

    // What `attend` needs beside the packed head, all of query_block rows: where its arrays begin, as above.
    struct Scratch {
        size_t queries = 0, shares;  // [tiles][k blocks]
        size_t scores, sums;         // [key_block], [head width]
        size_t totals;               // [lanes], which are still to be added
        size_t bytes;

        M3EDGE_INLINE Scratch(size_t head_width)
            : shares(query_block * rounded_up(head_width, depth) * sizeof(Element)),
              scores(shares + query_block * key_block * sizeof(Element)), sums(scores + query_block * key_block * sizeof(float)),
              totals(sums + query_block * head_width * sizeof(float)), bytes(totals + query_block * lanes * sizeof(float)) {}
    };

    static size_t scratch_bytes(size_t head_width) { return Scratch(head_width).bytes; }

    static void attend(const HeadAttention& head) {
        const size_t width = head.head_width, n_tiles = (head.n_queries + tile_rows - 1) / tile_rows;
        const Packed packed(head.n_tokens, width);
        const float* key_scales = (const float*)(head.packed + packed.key_scales);
        const float* value_scales = (const float*)(head.packed + packed.value_scales);
        const Scratch at(width);
        uint8_t *queries = head.scratch + at.queries, *shares = head.scratch + at.shares;
        float *scores = (float*)(head.scratch + at.scores), *sums = (float*)(head.scratch + at.sums);
        float* totals = (float*)(head.scratch + at.totals);

        Products::begin();
        alignas(64) float query_scales[query_block] = {}, largest[query_block], block_largest[query_block] = {};
        alignas(64) float keep[query_block], raise[query_block];
        for (size_t q = 0; q < query_block; ++q) largest[q] = lowest;
        for (size_t i = 0; i < query_block * (width + lanes); ++i) sums[i] = 0;  // and totals
        pack_queries(head, packed.width, queries, query_scales);
        for (size_t first = 0; first < packed.tokens; first += key_block) {
            const size_t n = least(packed.tokens - first, key_block), n_counted = least(head.n_tokens - first, n);
            multiply_into<Products>({queries, head.packed + packed.keys_from(first), packed.width / depth}, n_tiles,
                                    n / panel_width, (int32_t*)scores, key_block);
            for (size_t q = 0; q < head.n_queries; ++q)
                block_largest[q] =
                    query_scales[q] * find_largest(scores + q * key_block, n, n_counted, key_scales + first);
            for (size_t q = 0; q < query_block; q += lanes) {
                const Floats now = load<Floats>(block_largest + q), before = load<Floats>(largest + q);
                const Floats most = larger(before, now);
                store(keep + q, power_of_two(before - most));
                store(raise + q, power_of_two(now - most));
                store(largest + q, most);
            }
            for (size_t q = 0; q < head.n_queries; ++q) {
                Element* out = (Element*)(shares + q / tile_rows * (n / depth) * tile_bytes) + q % tile_rows * depth;
                const Floats sum = weigh(scores + q * key_block, n, query_scales[q], block_largest[q], out);
                store(totals + q * lanes, load<Floats>(totals + q * lanes) * keep[q] + sum * raise[q]);
            }
            multiply_tiles<Products>(
                {shares, head.packed + packed.values_from(first, width), n / depth}, 0, n_tiles, 0, width / panel_width,
                [&](size_t tile, size_t panel, const int32_t* products, size_t stride) {
                    for (size_t r = 0; r < tile_rows; ++r)
                        for (size_t j = 0; j < panel_width; j += lanes) {
                            const size_t q = tile * tile_rows + r;
                            float* sum = sums + q * width + panel * panel_width + j;
                            const Floats added = E::numbers(load<Ints>(products + r * stride + j));
                            store(sum, load<Floats>(sum) * keep[q] + added * raise[q]);
                        }
                });
        }
        Products::end();
        for (size_t q = 0; q < head.n_queries; ++q) {
            const float inverse = 1 / (sum_of(load<Floats>(totals + q * lanes)) * E::most_share);
            for (size_t j = 0; j < width; j += lanes)
                store(head.out + q * head.out_stride + j,
                      load<Floats>(sums + q * width + j) * inverse * load<Floats>(value_scales + j));
        }
    }

    // Scores are to be powers of two, not of e.
    static M3EDGE_INLINE void pack_queries(const HeadAttention& head, size_t packed_width, uint8_t* queries, float* scales) {
        const float factor = log2_e / __builtin_sqrtf(float(head.head_width));
        for (size_t q = 0; q < head.n_queries; ++q) {
            const float* query = head.queries + (head.first_query + q) * head.head_width;
            const float scale = scale_of(query, head.head_width), inverse = 1 / scale;
            scales[q] = scale * factor;
            Element* out = (Element*)(queries + q / tile_rows * (packed_width / depth) * tile_bytes) + q % tile_rows * depth;
            for (size_t k = 0; k < packed_width; k += lanes)
                E::put(out + k / depth * tile_rows * depth + k % depth,
                       k < head.head_width ? load<Floats>(query + k) * inverse : Floats{});
        }
    }

    // A query's sums with a block of keys to its scores, but for the query's scale; and the largest.
    static M3EDGE_INLINE float find_largest(float* scores, size_t n, size_t n_counted, const float* key_scales) {
        Floats most = all(lowest);
        for (size_t key = 0; key < n; key += lanes) {
            Floats score = load<Floats>(scores + key);
            if constexpr (E::scaled) {
                score = E::numbers((Ints)score) * load<Floats>(key_scales + key);
                store(scores + key, score);
            }
            if (key + lanes <= n_counted) most = larger(most, score);
        }
        float largest = largest_of(most);
        for (size_t key = n_counted / lanes * lanes; key < n_counted; ++key)
            largest = scores[key] > largest ? scores[key] : largest;
        for (size_t key = n_counted; key < n; ++key) scores[key] = lowest;
        return largest;
    }

    // A query's scores of a block of keys to their weights, of which the largest is most_share; their sum if that is 1.
    static M3EDGE_INLINE Floats weigh(const float* scores, size_t n, float scale, float largest, Element* out) {
        Floats sum = Floats{};
        for (size_t key = 0; key < n; key += lanes) {
            const Floats score = load<Floats>(scores + key);
            const Floats share = power_of_two<sizeof(Element) == 2>(score * scale - largest);
            sum += share;
            E::put(out + key / depth * tile_rows * depth + key % depth, share * E::most_share);
        }
        return sum;
    }

    // What a row's elements count for.
    static M3EDGE_INLINE float scale_of(const float* row, size_t width) {
        if constexpr (!E::scaled) return 1;
        Floats most = Floats{};
        for (size_t k = 0; k < width; k += lanes) most = larger(most, magnitude(load<Floats>(row + k)));
        const float scale = largest_of(most) / E::most_score(width);
        return scale > 1e-30f ? scale : 1e-30f;
    }

    static M3EDGE_INLINE Floats magnitude(Floats x) { return larger(x, -x); }
    static constexpr float lowest = -3e38f;
};

// Numbers that are floats themselves.
struct Unscaled {
    static constexpr bool scaled = false;
    static constexpr float most_share = 1, most_value = 1;

    static float most_score(size_t) { return 1; }
    static M3EDGE_INLINE Floats numbers(Ints sums) { return (Floats)sums; }
};

// In float32.
struct FloatDots {
    using Register = Floats;
    using Row = Floats;
    static constexpr size_t outputs = lanes, rows = lanes == 4 ? 4 : 6, panels = 1;

    static M3EDGE_INLINE Row broadcast(int32_t four) { return all(load<float>(&four)); }
    static M3EDGE_INLINE Register add_dot(Register sum, Row row, Register weights) { return sum + row * weights; }
};
struct SinglePrecision : Unscaled {
    using Element = float;
    using Products = InRegisters<FloatDots>;

    static M3EDGE_INLINE void put(Element* to, Floats x) { store(to, x); }
};

// In whole numbers of 16 bits, two of them a lane (D), as small as sums of 32 bits need. A key's score is then exact to one
// ten-thousandth of what it could be at most.
template <class D>
struct WholeNumbers {
    using Element = int16_t;
    using Products = InRegisters<D>;
    static constexpr bool scaled = true;
    static constexpr float most_share = 8191, most_value = 2047;
    static_assert(double(most_share) * most_value * key_block < 2147483648.0, "a block's sums must fit 32 bits");

    static M3EDGE_INLINE float most_score(size_t width) {
        const float most = __builtin_sqrtf(2.14e9f / float(width));
        return most < 32767 ? most - 1 : 32766;
    }
    static M3EDGE_INLINE void put(Element* to, Floats x) { store_words(to, (Ints)(x + no_fraction)); }
    static M3EDGE_INLINE Floats numbers(Ints sums) { return __builtin_convertvector(sums, Floats); }
};

}  // namespace
}  // namespace m3edge

#endif
