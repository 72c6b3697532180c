// One tile of attention: scores of rows against up to TILE tokens, their weights, and the weighted values.
#pragma once

#include "dequantise.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {

namespace {

const int64_t TILE = 128;
const float NEVER = -1e30f;  // below any score, yet finite, so that differences of two of them are numbers

// Products over units: `factor` is how a row's factors are kept, `factors` how many of them make a unit.
template <typename T>
struct Product;

template <>
struct Product<float> {
    typedef float factor;
    static const int64_t factors = 1;
    typedef vec units;
    static inline units load_units(const unit* p) { return load((const float*)p); }
    static inline vec add(vec sum, const factor* f, units b) { return fma(set(f[0]), b, sum); }
    static inline void store_factors(factor* p, vec x) { store(p, x); }
};

#if defined(MILLSTREAM_AVX512)
template <>
struct Product<bf16> {
    typedef bf16 factor;
    static const int64_t factors = 2;
    typedef __m512bh units;
    static inline units load_units(const unit* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static inline vec add(vec sum, const factor* f, units b) {
        int32_t pair;
        memcpy(&pair, f, 4);
        return _mm512_dpbf16_ps(sum, b, (__m512bh)_mm512_set1_epi32(pair));
    }
    static inline void store_factors(factor* p, vec x) { store(p, x); }
};
#else
template <>
struct Product<bf16> {
    typedef float factor;
    static const int64_t factors = 2;
    struct units {
        vec even, odd;
    };
    static inline units load_units(const unit* p) {
        uvec pairs;
        memcpy(&pairs, p, sizeof pairs);
        return {(vec)(pairs << 16), (vec)(pairs & 0xffff0000u)};
    }
    static inline vec add(vec sum, const factor* f, units b) {
        return fma(set(f[1]), b.odd, fma(set(f[0]), b.even, sum));
    }
    static inline void store_factors(factor* p, vec x) { store(p, x); }
};
#endif

// Pieces of PIECE_ROWS rows x PIECE_VECTORS vectors have their sums in registers.
#if defined(MILLSTREAM_AVX512)
const int PIECE_ROWS = 7, PIECE_VECTORS = 4;
#else
const int PIECE_ROWS = 5, PIECE_VECTORS = 2;
#endif

// How products become scores.
struct Scoring {
    float scale;  // of the products, times log2 e where there is no cap
    float cap;    // times log2 e; 0: none
};

// R rows of factors times C vectors of units, summed in the order of the units. With FETCH, what lies at `ahead` is
// brought near meanwhile, one line per column and unit.
template <typename T, bool FETCH, int R, int C>
static inline void products(vec (&sums)[R][C], const typename Product<T>::factor* factors, int64_t factor_stride,
                            const unit* const* columns, int64_t column_stride, int64_t count, const unit* const* ahead,
                            int64_t ahead_stride) {
    typedef Product<T> P;
    const unit *at[C], *next[C];
    for (int c = 0; c < C; c++) {
        at[c] = columns[c];
        if (FETCH) next[c] = ahead[c];
    }
    for (int64_t u = 0; u < count; u++) {
        // Two vectors at a time: 7 x 4 sums, two of them and one broadcast factor just fit into 32 registers.
        // The compiler is kept from carrying factors over to the next two.
#pragma GCC unroll 2
        for (int pair = 0; pair < C; pair += 2) {
            const int columns_left = C - pair < 2 ? C - pair : 2;
            typename P::units b[2];
#pragma GCC unroll 2
            for (int c = 0; c < columns_left; c++) {
                b[c] = P::load_units(at[pair + c]);
                at[pair + c] += column_stride;
                if (FETCH) {
                    __builtin_prefetch(next[pair + c]);
                    next[pair + c] += ahead_stride;
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int c = 0; c < columns_left; c++)
                    sums[r][pair + c] = P::add(sums[r][pair + c], factors + r * factor_stride, b[c]);
            asm("" : "+r"(factors));
        }
        factors += P::factors;
    }
}

// Calls kernel.run<rows, C>(row, column), rows being at most R.
template <int R, int C, typename Kernel>
static inline void run_piece(const Kernel& kernel, int64_t row, int64_t rows, int64_t column) {
    if (rows == R)
        kernel.template run<R, C>(row, column);
    else if constexpr (R > 1)
        run_piece<R - 1, C>(kernel, row, rows, column);
}

// Cuts the rows into pieces of equal size, as nearly as can be.
template <int C, typename Kernel>
static inline void run_rows(const Kernel& kernel, int64_t rows, int64_t column) {
    for (int64_t row = 0, pieces = ceil_div(rows, PIECE_ROWS); pieces > 0; pieces--) {
        int64_t count = ceil_div(rows - row, pieces);
        run_piece<PIECE_ROWS, C>(kernel, row, count, column);
        row += count;
    }
}

template <int C = PIECE_VECTORS, typename Kernel>
static inline void run_pieces(const Kernel& kernel, int64_t rows, int64_t vectors, int64_t column = 0) {
    for (; column + C <= vectors; column += C) run_rows<C>(kernel, rows, column);
    if constexpr (C > 1)
        if (column < vectors) run_pieces<C / 2>(kernel, rows, vectors, column);
}

// Where the tokens of one tile lie, in groups of GROUP; `key_stride` units stand between a token's neighbouring key
// units. Codes of a quantised cache stand for themselves times a scale per token.
struct TileUnits {
    const unit* keys[TILE / GROUP];
    const unit* values[TILE / GROUP];
    int64_t key_stride;
    float* key_scales;  // null: none
    float* value_scales;
};

// While scores are computed the tile's values are fetched, and while values are summed the next tile's keys: each
// group has as many lines of one as units of the other.
const int64_t LINE = 16;  // units

template <typename T, bool FETCH>
struct ScorePieces {
    const typename Product<T>::factor* query;
    const TileUnits& tile;
    const Layout<T>& layout;
    float* scores;
    int64_t first_token;

    template <int R, int C>
    void run(int64_t row, int64_t column) const {
        const int64_t count = layout.dim / PerUnit<T>::value, stride = count * Product<T>::factors;
        const unit *columns[C], *ahead[C];
        for (int c = 0; c < C; c++) {
            int64_t token = first_token + (column + c) * WIDTH;
            columns[c] = tile.keys[token / GROUP] + token % GROUP;
            ahead[c] = tile.values[token / GROUP];
        }
        vec sums[R][C] = {};
        products<T, FETCH, R, C>(sums, query + row * stride, stride, columns, tile.key_stride, count, ahead, LINE);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++)
                store(scores + (row + r) * TILE + first_token + (column + c) * WIDTH, sums[r][c]);
    }
};

template <typename T, bool FETCH>
struct ValuePieces {
    const typename Product<T>::factor* weights;
    const TileUnits &tile, &next;
    const Layout<T>& layout;
    int64_t first_token, end_token;
    float* values;
    const float* old_factors;  // null: store the tile's own values
    const float* new_factors;

    template <int R, int C>
    void run(int64_t row, int64_t column) const {
        const int64_t per_unit = PerUnit<T>::value, factors = Product<T>::factors, padded = layout.padded();
        const int64_t stride = TILE / per_unit * factors;
        vec sums[R][C] = {};
        for (int64_t token = first_token; token < end_token; token += GROUP) {
            const unit *columns[C], *ahead[C];
            for (int c = 0; c < C; c++) {
                columns[c] = tile.values[token / GROUP] + (column + c) * WIDTH;
                ahead[c] = next.keys[token / GROUP] + (column + c) * WIDTH / per_unit * next.key_stride;
            }
            int64_t count = ceil_div(least(GROUP, end_token - token), per_unit);
            products<T, FETCH, R, C>(sums, weights + row * stride + token / per_unit * factors, stride, columns, padded,
                                     count, ahead, next.key_stride);
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) {
                float* at = values + (row + r) * padded + (column + c) * WIDTH;
                vec x = sums[r][c];
                if (old_factors) x = fma(x, set(new_factors[row + r]), load(at) * set(old_factors[row + r]));
                store(at, x);
            }
    }
};

// The weights of N vectors of scores: 2 ^ (score * factor - top). What is stored is multiplied by the values' scales.
template <typename T, bool SCALED, int N>
static inline vec weigh_vectors(const float* scores, typename Product<T>::factor* weights, const float* scales,
                                vec factor, vec top, vec total) {
    const int64_t step = WIDTH / PerUnit<T>::value * Product<T>::factors;
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        vec weight = exp2(fma(load(scores + i * WIDTH), factor, top));
        total = total + weight;
        if (SCALED) weight = weight * load(scales + i * WIDTH);
        Product<T>::store_factors(weights + i * step, weight);
    }
    return total;
}

// Turns a row's scores of tokens first .. end of a tile into weights; the row sees tokens begin .. end_visible.
template <typename T, bool SCALED>
static inline void weigh(const Scoring& scoring, const TileUnits& tile, float* scores,
                         typename Product<T>::factor* weights, int64_t first, int64_t end, int64_t begin,
                         int64_t end_visible, float* largest_score, float* sums) {
    const int64_t step = WIDTH / PerUnit<T>::value * Product<T>::factors;
    const bool plain = !SCALED && scoring.cap == 0 && scoring.scale > 0;
    vec top = set(NEVER), other_top = top, total = {};
    if (!plain) {
        for (int64_t token = first; token < end; token += WIDTH) {
            vec x = load(scores + token) * set(scoring.scale);
            if (SCALED) x = x * load(tile.key_scales + token);
            store(scores + token, scoring.cap != 0 ? tanh(x) * set(scoring.cap) : x);
        }
    }
    const bool whole = first == 0 && begin <= 0 && end_visible >= TILE;
    if (whole) {
#pragma GCC unroll 8
        for (int i = 0; i < TILE / WIDTH; i += 2) {
            top = larger(top, load(scores + i * WIDTH));
            other_top = larger(other_top, load(scores + (i + 1) * WIDTH));
        }
    } else {
        for (int64_t token = first; token < end; token += WIDTH) {
            vec x = load(scores + token);
            if (token < begin || token + WIDTH > end_visible) {
                x = within(x, begin - token, end_visible - token, set(-__builtin_inff()));
                store(scores + token, x);
            }
            top = larger(top, x);
        }
    }
    const float factor = plain ? scoring.scale : 1.0f;
    float most_score = largest(larger(top, other_top));
    most_score = (most_score > NEVER ? most_score : NEVER) * factor;
    if (whole) {
        total = weigh_vectors<T, SCALED, TILE / WIDTH>(scores, weights, tile.value_scales, set(factor),
                                                       set(-most_score), total);
    } else {
        for (int64_t token = first; token < end; token += WIDTH)
            total = weigh_vectors<T, SCALED, 1>(scores + token, weights + token / WIDTH * step,
                                                tile.value_scales + token, set(factor), set(-most_score), total);
    }
    *largest_score = most_score;
    store(sums, total);
}

// Merges the rows' next triples: gives the factors of their former values and of the new ones. All arrays of one
// number per row are readable and writable up to a multiple of WIDTH.
static inline void merge(int64_t rows, float* largest_scores, float* sums, const float* new_largest,
                         const float* new_sums, float* old_factors, float* new_factors) {
    for (int64_t row = 0; row < rows; row += WIDTH) {
        vec before = load(largest_scores + row), added = load(new_largest + row);
        vec top = larger(before, added);
        store(old_factors + row, exp2(before - top));
        store(new_factors + row, exp2(added - top));
        store(largest_scores + row, top);
    }
    for (int64_t row = 0; row < rows; row++) {
        float* at = sums + row * WIDTH;
        store(at, fma(load(new_sums + row * WIDTH), set(new_factors[row]), load(at) * set(old_factors[row])));
    }
}

}  // namespace
}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
