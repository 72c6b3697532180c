// What the integer matrix products share: quantised rows of activations, panels of weights, the way out.
//
// A layer y = x W^T + b with N outputs and K inputs is cut into panels of 64 columns (outputs). Weights are
// stored without a sign (their value plus an offset), activations with one, so that one instruction multiplies
// and sums four pairs; the offset is taken back by the sum of the row's activations. All sums are exact
// 32-bit integers: every level, order of summation and number of rows gives the same ones.
#pragma once

#include "activation.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {

static const int PANEL = 64;          // columns
static const int QUAD = 4;            // inputs that stand side by side for one column
static const int GROUP = 32;          // inputs that share a multiplier in 4-bit weights
static const int VECTORS = PANEL / WIDTH;
static const int TOTALS_SLOT = 11, ROWS_SLOT = 12, SCALES_SLOT = 13, PANEL_SLOT = 14, SUMS_SLOT = 15;  // of scratch()

#if defined(MILLSTREAM_AVX512)
static inline vec to_vec(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
#else
static inline vec to_vec(const int32_t* p) {
    ivec x;
    memcpy(&x, p, sizeof x);
    return __builtin_convertvector(x, vec);
}
#endif

// sums[c] = start + sum over quads of a[i] * b[i][c]
static inline void add_products(const int8_t* a, const uint8_t* b, int64_t quads, int32_t start, int32_t* sums) {
#if defined(MILLSTREAM_AVX2)
    for (int block = 0; block < PANEL; block += 16) {
        // Sums of pairs of products, two lanes per column; bytes are widened first, so that nothing saturates.
        __m256i pairs[4] = {};
        for (int64_t q = 0; q < quads; q++) {
            int32_t four;
            memcpy(&four, a + q * QUAD, 4);
            __m256i x = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
            const __m128i* w = (const __m128i*)(b + (q * PANEL + block) * QUAD);
            for (int i = 0; i < 4; i++) {
                __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(w + i));
                pairs[i] = _mm256_add_epi32(pairs[i], _mm256_madd_epi16(wide, x));
            }
        }
        for (int i = 0; i < 4; i++) {
            int32_t lanes[8];
            _mm256_storeu_si256((__m256i*)lanes, pairs[i]);
            for (int c = 0; c < 4; c++) sums[block + i * 4 + c] = start + lanes[2 * c] + lanes[2 * c + 1];
        }
    }
#else
    for (int c = 0; c < PANEL; c++) sums[c] = start;
    for (int64_t q = 0; q < quads; q++)
        for (int c = 0; c < PANEL; c++) {
            const uint8_t* w = b + (q * PANEL + c) * QUAD;
            const int8_t* x = a + q * QUAD;
            sums[c] += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
        }
#endif
}

#if defined(MILLSTREAM_AVX512)
#define UNROLL _Pragma("GCC unroll 32")

// The compiler may neither read a register's content again from memory nor copy sums to and fro, which it does
// where it sees through loads and products.
static inline __m512i held(__m512i x) {
    asm("" : "+v"(x));
    return x;
}
static inline __m512i load_bytes(const uint8_t* p) { return held(_mm512_loadu_si512(p)); }
// The same four bytes in every lane.
static inline __m512i spread(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return held(_mm512_set1_epi32(four));
}
// Adds four products of unsigned and signed bytes to each lane.
static inline void add_dots(__m512i& sum, __m512i without_sign, __m512i with_sign) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(without_sign), "v"(with_sign));
}
// Adds two products of signed 16-bit numbers to each lane.
static inline void add_wide_dots(__m512i& sum, __m512i a, __m512i b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
template <int LINES>
static inline void prefetch(const uint8_t*& at) {
    UNROLL for (int line = 0; line < LINES; line++) _mm_prefetch((const char*)at + line * 64, _MM_HINT_T0);
    at += LINES * 64;
}
#endif

enum Kind { PLAIN = 0, SILU = 1, GELU = 2, GELU_TANH = 3 };

// Rows as int8: x is about scales[row] * rows[row].
struct QuantisedRows {
    int8_t* values;   // [count, stride], zeros behind a row's inputs
    float* scales;    // [count]; no number for a row with an element that is none, or infinite
    int32_t* sums;    // [count, groups]: of each group of GROUP inputs
    int32_t* totals;  // [count]: of all inputs
    int64_t count, stride, groups;
};

template <typename T>
static inline void quantise_row(const T* x, int64_t inputs, int64_t padded, int8_t* to, float* scale, int32_t* sums,
                                int32_t* total_sum) {
    vec top = {}, bad = {};
    for (int64_t i = 0; i < inputs; i += WIDTH) {
        vec value = load(x + i, least(WIDTH, inputs - i));
        top = larger(top, magnitude(value));
        bad = bad + value * set(0.0f);  // stays 0 unless an element is no number, or infinite
    }
    float most_magnitude = largest(top), check = sum(bad);
    bool good = check == 0.0f;
    *scale = good ? most_magnitude / 127.0f : check;
    // A tiny row's factor would be infinite; its values are as good as zero.
    float factor = good && most_magnitude > 1e-30f ? 127.0f / most_magnitude : 0.0f;
    for (int64_t i = 0; i < inputs; i += WIDTH) {
        int64_t count = least(WIDTH, inputs - i);
        vec value = load(x + i, count) * set(factor);
        store_int8(to + i, good ? value : (vec){}, count);
    }
    memset(to + inputs, 0, padded - inputs);
    int32_t total = 0;
    for (int64_t group = 0; group < padded / GROUP; group++) {
        int32_t part = 0;
        for (int i = 0; i < GROUP; i++) part += to[group * GROUP + i];
        sums[group] = part;
        total += part;
    }
    *total_sum = total;
}

// Quantises into this thread's scratch memory.
template <typename T>
static QuantisedRows quantise(const T* x, int64_t stride, int64_t rows, int64_t inputs) {
    int64_t padded = round_up(inputs, GROUP);
    QuantisedRows made;
    made.count = rows;
    // A row more than a multiple of 64 bytes apart keeps rows out of each other's cache sets.
    made.stride = round_up(padded, 64) + 64;
    made.groups = padded / GROUP;
    made.values = scratch<int8_t>(ROWS_SLOT, rows * made.stride + 64);
    made.scales = scratch<float>(SCALES_SLOT, rows);
    made.sums = scratch<int32_t>(SUMS_SLOT, rows * (made.groups + 1));
    made.totals = made.sums + rows * made.groups;
    parallel_for(rows, 1, rows * inputs / 8, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++)
            quantise_row(x + row * stride, inputs, padded, made.values + row * made.stride, made.scales + row,
                         made.sums + row * made.groups, made.totals + row);
    });
    return made;
}

// Where a panel's columns go, and what becomes of them on the way.
template <typename T>
struct Output {
    T* y;
    int64_t stride;
    int64_t outputs;     // columns of y
    const float* scales; // [panels * PANEL]
    const float* bias;   // the same shape, or null
    int kind;            // a gated kind: half a panel is the gate of the other half

    int64_t columns() const { return kind == PLAIN ? PANEL : PANEL / 2; }

    template <typename Activation>
    static inline void gate(const vec* values, T* to, int64_t count) {
        for (int v = 0; v < VECTORS / 2 && v * WIDTH < count; v++) {
            vec made = Activation::of(values[v]) * values[VECTORS / 2 + v];
            if ((v + 1) * WIDTH <= count)
                store(to + v * WIDTH, made);
            else
                store(to + v * WIDTH, made, count - v * WIDTH);
        }
    }

    // `sums`: one row's sums of products over a panel.
    inline void row(const int32_t* sums, int64_t row, int64_t panel, float row_scale) const {
        vec values[VECTORS];
        const float* scale = scales + panel * PANEL;
        for (int v = 0; v < VECTORS; v++)
            values[v] = to_vec(sums + v * WIDTH) * load(scale + v * WIDTH) * set(row_scale);
        finish(values, row, panel);
    }

    // `values`: one row's products over a panel, scales applied.
    inline void finish(vec* values, int64_t row, int64_t panel) const {
        if (bias)
            for (int v = 0; v < VECTORS; v++) values[v] = values[v] + load(bias + panel * PANEL + v * WIDTH);
        T* to = y + row * stride + panel * columns();
        int64_t count = least(columns(), outputs - panel * columns());
        if (kind == PLAIN) {
            if (count == PANEL)
                for (int v = 0; v < VECTORS; v++) store(to + v * WIDTH, values[v]);
            else
                for (int v = 0; v * WIDTH < count; v++)
                    store(to + v * WIDTH, values[v], least(WIDTH, count - v * WIDTH));
        } else if (kind == SILU) {
            gate<Silu>(values, to, count);
        } else if (kind == GELU) {
            gate<Gelu>(values, to, count);
        } else {
            gate<GeluTanh>(values, to, count);
        }
    }
};

// The row of the weight matrix that a column of a panel holds; `rows` or more: none. In a gated layer the first
// half of the rows are gates, and each panel has as many of them as of their partners.
static inline int64_t weight_row(int64_t panel, int column, int64_t rows, bool gated) {
    if (!gated) return panel * PANEL + column;
    int64_t row = panel * (PANEL / 2) + column % (PANEL / 2), half = rows / 2;
    if (row >= half) return rows;
    return column < PANEL / 2 ? row : half + row;
}

static inline int64_t panels_of(int64_t rows, bool gated) {
    return gated ? ceil_div(rows / 2, PANEL / 2) : ceil_div(rows, PANEL);
}

// The arguments of a product, in their order.
template <typename In, typename T>
struct Product {
    const In* x;
    int64_t stride, rows, inputs;
    const uint8_t* weights;
    Output<T> out;

    explicit Product(Arguments& given) {
        x = given.pointer<const In>();
        stride = given.integer();
        rows = given.integer();
        inputs = given.integer();
        weights = given.pointer<const uint8_t>();
        out.scales = given.pointer<const float>();
        out.bias = given.pointer<const float>();
        out.kind = (int)given.integer();
        out.y = given.pointer<T>();
        out.stride = given.integer();
        out.outputs = given.integer();
    }
    int64_t panels() const { return ceil_div(out.outputs, out.columns()); }
    // Reading a panel costs about as much as eight rows.
    int64_t work() const { return panels() * inputs * (rows + 8); }
};

// Calls body(panel, first row, rows) for all rows of all panels, each thread going through neighbouring panels.
template <typename Body>
static inline void for_panels(int64_t panels, int64_t rows, int64_t inputs, const Body& body) {
    int64_t threads = thread_count();
    int64_t pieces = panels < 16 * threads && rows >= 48 * threads ? threads : 1;
    int64_t length = round_up(ceil_div(rows, pieces), 6);
    int64_t work = panels * inputs * (rows + 8);
    parallel_for(panels * pieces, 1, work, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) {
            int64_t first = task % pieces * length;
            int64_t count = least(length, rows - first);
            if (count > 0) body(task / pieces, first, count);
        }
    });
}

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
