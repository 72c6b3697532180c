// Linear layers with 4-bit weights: groups of GROUP inputs share a small signed multiplier, output channels a scale.
//
// A weight is about scale * multiplier * value, value in -8 .. 7. Sums of a group fit into 16 bits, so that the
// multiplier is applied to them, not to the weights, and all stays exact: the packing keeps multipliers so
// small that 32 bits hold the sum over all groups.
//
// A panel is a sequence of groups. Each holds, for every other quad and for each column, QUAD bytes with the values
// plus 8 of this quad in their lower half and of the next quad in the upper one; then a multiplier per column.
#include "linear_common.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {
namespace {

static const int OFFSET = 8;                    // of a stored value
static const int QUADS = GROUP / QUAD;          // of a group
static const int GROUP_VALUES = GROUP / 2 * PANEL;
static const int GROUP_BYTES = GROUP_VALUES + PANEL;
static const int64_t MAX_GROUP_SUM = 127 * OFFSET * GROUP;
static const int64_t READ_AHEAD = 4096;  // bytes

// Some groups of a panel as the kernel for many rows reads them: a byte for each value, 32 bits for each multiplier.
struct Opened {
    uint8_t* values;       // [groups, quads, PANEL, QUAD]
    int32_t* multipliers;  // [groups, PANEL], the upper halves zero
};

// So many groups at a time that they stay in the nearest cache while all rows pass by.
static const int BLOCK_GROUPS = 14;

static inline Opened open_block(const uint8_t* from, int64_t groups) {
    uint8_t* memory = scratch<uint8_t>(PANEL_SLOT, BLOCK_GROUPS * (GROUP * PANEL + 4 * PANEL));
    Opened opened = {memory, (int32_t*)(memory + BLOCK_GROUPS * GROUP * PANEL)};
    for (int64_t g = 0; g < groups; g++, from += GROUP_BYTES) {
        uint8_t* to = opened.values + g * GROUP * PANEL;
        for (int pair = 0; pair < QUADS / 2; pair++) {
            const uint8_t* both = from + pair * PANEL * QUAD;
            uint8_t *even = to + 2 * pair * PANEL * QUAD, *odd = even + PANEL * QUAD;
#if defined(MILLSTREAM_AVX512)
            const __m512i low = _mm512_set1_epi8(15);
            UNROLL for (int v = 0; v < 4; v++) {
                __m512i x = load_bytes(both + v * 64);
                _mm512_store_si512(even + v * 64, _mm512_and_si512(x, low));
                _mm512_store_si512(odd + v * 64, _mm512_and_si512(_mm512_srli_epi16(x, 4), low));
            }
#else
            for (int i = 0; i < PANEL * QUAD; i++) {
                even[i] = both[i] & 15;
                odd[i] = both[i] >> 4;
            }
#endif
        }
        const int8_t* multipliers = (const int8_t*)from + GROUP_VALUES;
        for (int c = 0; c < PANEL; c++) opened.multipliers[g * PANEL + c] = (uint16_t)(int16_t)multipliers[c];
    }
    return opened;
}

#if defined(MILLSTREAM_AVX512)
static const int CLOSED_ROWS = 2;  // up to so many rows read the packed values themselves
static const int TILE_ROWS = 3;

// sums[r][c] = sum over groups of multiplier[c] * (sum over the group of a[r][i] * (value[i][c] - OFFSET)), R rows.
template <int R>
static inline void multiply_closed(const int8_t* a, int64_t stride, const int32_t* group_sums, const uint8_t* b,
                                   int64_t groups, int32_t* sums) {
    const __m512i low = _mm512_set1_epi8(15), word = _mm512_set1_epi32(0xffff);
    __m512i sum[R][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < 4; v++) sum[r][v] = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; g++) {
        __m512i part[R][4];
        UNROLL for (int r = 0; r < R; r++) {
            __m512i start = held(_mm512_set1_epi32(-OFFSET * group_sums[r * groups + g]));
            UNROLL for (int v = 0; v < 4; v++) part[r][v] = start;
        }
        const uint8_t* ahead = b + READ_AHEAD;
        for (int pair = 0; pair < QUADS / 2; pair++) {
            prefetch<4>(ahead);
            UNROLL for (int v = 0; v < 4; v++) {
                __m512i both = load_bytes(b + pair * PANEL * QUAD + v * 64);
                __m512i even = held(_mm512_and_si512(both, low));
                __m512i odd = held(_mm512_and_si512(_mm512_srli_epi16(both, 4), low));
                UNROLL for (int r = 0; r < R; r++) {
                    add_dots(part[r][v], even, spread(a + r * stride + 2 * pair * QUAD));
                    add_dots(part[r][v], odd, spread(a + r * stride + (2 * pair + 1) * QUAD));
                }
            }
        }
        prefetch<1>(ahead);
        UNROLL for (int v = 0; v < 4; v++) {
            __m128i narrow = _mm_loadu_si128((const __m128i*)(b + GROUP_VALUES + v * 16));
            __m512i multiplier = held(_mm512_and_si512(_mm512_cvtepi8_epi32(narrow), word));
            UNROLL for (int r = 0; r < R; r++) add_wide_dots(sum[r][v], part[r][v], multiplier);
        }
        a += GROUP;
        b += GROUP_BYTES;
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < 4; v++) _mm512_store_si512(sums + r * PANEL + v * 16, sum[r][v]);
}

// The same for some groups that are open, added to `sums`; `group_stride` is from one row's group sums to the
// next one's. `ahead` is memory that is needed later, LINES cache lines per quad.
template <int R, int LINES>
static inline void multiply_opened(const int8_t* a, int64_t stride, const int32_t* group_sums, int64_t group_stride,
                                   const Opened& b, int64_t groups, int32_t* sums, const uint8_t* ahead) {
    const uint8_t* values = b.values;
    __m512i sum[R][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < 4; v++) sum[r][v] = held(_mm512_load_si512(sums + r * PANEL + v * 16));
    for (int64_t g = 0; g < groups; g++) {
        __m512i part[R][4];
        UNROLL for (int r = 0; r < R; r++) {
            __m512i start = held(_mm512_set1_epi32(-OFFSET * group_sums[r * group_stride + g]));
            UNROLL for (int v = 0; v < 4; v++) part[r][v] = start;
        }
        for (int q = 0; q < QUADS; q++) {
            prefetch<LINES>(ahead);
            __m512i w[4];
            UNROLL for (int v = 0; v < 4; v++) w[v] = load_bytes(values + v * 64);
            UNROLL for (int r = 0; r < R; r++) {
                __m512i x = spread(a + r * stride);
                UNROLL for (int v = 0; v < 4; v++) add_dots(part[r][v], w[v], x);
            }
            a += QUAD;
            values += PANEL * QUAD;
        }
        UNROLL for (int v = 0; v < 4; v++) {
            __m512i multiplier = load_bytes((const uint8_t*)(b.multipliers + g * PANEL + v * 16));
            UNROLL for (int r = 0; r < R; r++) add_wide_dots(sum[r][v], part[r][v], multiplier);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < 4; v++) _mm512_store_si512(sums + r * PANEL + v * 16, sum[r][v]);
}
#else
static const int CLOSED_ROWS = 0;
static const int TILE_ROWS = 1;

template <int R>
static inline void multiply_closed(const int8_t*, int64_t, const int32_t*, const uint8_t*, int64_t, int32_t*) {}

template <int R, int LINES>
static inline void multiply_opened(const int8_t* a, int64_t, const int32_t* group_sums, int64_t, const Opened& b,
                                   int64_t groups, int32_t* sums, const uint8_t*) {
    for (int64_t g = 0; g < groups; g++) {
        int32_t part[PANEL];
        add_products(a + g * GROUP, b.values + g * GROUP * PANEL, QUADS, -OFFSET * group_sums[g], part);
        for (int c = 0; c < PANEL; c++) sums[c] += part[c] * (int16_t)b.multipliers[g * PANEL + c];
    }
}
#endif

template <int R, typename T>
static void closed_tile(const QuantisedRows& x, int64_t row, const uint8_t* b, int64_t panel, const Output<T>& out) {
    alignas(64) int32_t sums[R * PANEL];
    multiply_closed<R>(x.values + row * x.stride, x.stride, x.sums + row * x.groups, b, x.groups, sums);
    for (int r = 0; r < R; r++) out.row(sums + r * PANEL, row + r, panel, x.scales[row + r]);
}

// Rows of a tile, and groups from `first` on.
template <int LINES>
static inline void opened_tile(int64_t rows, const QuantisedRows& x, int64_t row, int64_t first, int64_t groups,
                               const Opened& b, int32_t* sums, const uint8_t* ahead) {
    const int8_t* a = x.values + row * x.stride + first * GROUP;
    const int32_t* of_groups = x.sums + row * x.groups + first;
    switch (rows) {
#if defined(MILLSTREAM_AVX512)
        case 2: return multiply_opened<2, LINES>(a, x.stride, of_groups, x.groups, b, groups, sums, ahead);
        case 3: return multiply_opened<3, LINES>(a, x.stride, of_groups, x.groups, b, groups, sums, ahead);
#endif
        default: return multiply_opened<1, LINES>(a, x.stride, of_groups, x.groups, b, groups, sums, ahead);
    }
}

template <typename T>
static void opened_tiles(const QuantisedRows& x, int64_t first, int64_t rows, const uint8_t* b, int64_t panel,
                         const Output<T>& out) {
    int32_t* sums = scratch<int32_t>(TOTALS_SLOT, rows * PANEL);
    memset(sums, 0, rows * PANEL * sizeof *sums);
    int64_t count = ceil_div(rows, TILE_ROWS);
    for (int64_t group = 0; group < x.groups; group += BLOCK_GROUPS) {
        int64_t groups = least(BLOCK_GROUPS, x.groups - group), bytes = groups * GROUP_BYTES;
        const uint8_t* block = b + group * GROUP_BYTES;
        Opened opened = open_block(block, groups);
        for (int64_t i = 0; i < count; i++) {
            int64_t begin = rows * i / count, end = rows * (i + 1) / count;
            const uint8_t* ahead = block + bytes + bytes * i / count / 64 * 64;
            if (count == 1)
                opened_tile<2>(end - begin, x, first + begin, group, groups, opened, sums + begin * PANEL, ahead);
            else
                opened_tile<1>(end - begin, x, first + begin, group, groups, opened, sums + begin * PANEL, ahead);
        }
    }
    for (int64_t r = 0; r < rows; r++) out.row(sums + r * PANEL, first + r, panel, x.scales[first + r]);
}

template <typename T>
static void tiles(const QuantisedRows& x, int64_t first, int64_t rows, const uint8_t* b, int64_t panel,
                  const Output<T>& out) {
    if (rows > CLOSED_ROWS) return opened_tiles(x, first, rows, b, panel, out);
    if (rows == 1) return closed_tile<1>(x, first, b, panel, out);
    closed_tile<2>(x, first, b, panel, out);
}

template <typename In, typename T>
static PyObject* run(Arguments& given) {
    Product<In, T> product(given);
    if (given.failed()) return nullptr;
    int64_t panel_bytes = round_up(product.inputs, GROUP) / GROUP * GROUP_BYTES;
    LongWork long_work(product.work());
    QuantisedRows x = quantise(product.x, product.stride, product.rows, product.inputs);
    for_panels(product.panels(), product.rows, product.inputs, [&](int64_t panel, int64_t first, int64_t count) {
        tiles(x, first, count, product.weights + panel * panel_bytes, panel, product.out);
    });
    Py_RETURN_NONE;
}

// The nearest integer, for |x| < 2^22.
static inline float whole_of(float x) { return (x + 12582912.0f) - 12582912.0f; }

// Sum of squares of what rounding takes away; every level adds in the same order.
static inline float error_of(const float* values, float step) {
    float factor = 1.0f / step, error[GROUP];
    for (int i = 0; i < GROUP; i++) {
        float whole = whole_of(values[i] * factor);
        whole = whole < -8.0f ? -8.0f : whole;
        whole = whole > 7.0f ? 7.0f : whole;
        float off = values[i] - whole * step;
        error[i] = off * off;
    }
    for (int half = GROUP / 2; half; half /= 2)
        for (int i = 0; i < half; i++) error[i] += error[i + half];
    return error[0];
}

// The step of a group, with a sign, for which its rounded values are nearest to it: the extreme value becomes -8,
// or lies a little beyond the range.
static float best_step(const float* values) {
    float extreme = 0;
    for (int i = 0; i < GROUP; i++)
        if ((values[i] < 0 ? -values[i] : values[i]) > (extreme < 0 ? -extreme : extreme)) extreme = values[i];
    if (extreme > -1e-30f && extreme < 1e-30f) return 0;
    float best = 0, least_error = 0;
    for (int i = 0; i < 8; i++) {
        float step = extreme / (-8.5f + 0.5f * (i % 4 - 2)) * (i < 4 ? 1.0f : -1.0f);
        float error = error_of(values, step);
        if (i == 0 || error < least_error) {
            least_error = error;
            best = step;
        }
    }
    return best;
}

// One column of a panel.
template <typename T>
static void pack_column(const T* row, int64_t inputs, int64_t groups, uint8_t* to, int8_t* multipliers,
                        float* scale) {
    float* values = scratch<float>(ROWS_SLOT, groups * (GROUP + 1));
    float* steps = values + groups * GROUP;
    for (int64_t i = 0; i < groups * GROUP; i++) values[i] = i < inputs ? to_float(row[i]) : 0.0f;
    float top = 0;
    for (int64_t g = 0; g < groups; g++) {
        steps[g] = best_step(values + g * GROUP);
        float m = steps[g] < 0 ? -steps[g] : steps[g];
        top = m > top ? m : top;
    }
    int64_t largest_multiplier = least(127, INT32_MAX / (MAX_GROUP_SUM * groups));
    *scale = top / (float)largest_multiplier;
    for (int64_t g = 0; g < groups; g++) {
        float multiplier = *scale > 0 ? __builtin_rintf(steps[g] / *scale) : 0.0f;
        if (multiplier == 0) multiplier = steps[g] < 0 ? -1.0f : 1.0f;
        multipliers[g * GROUP_BYTES] = (int8_t)multiplier;
        float step = multiplier * *scale, factor = *scale > 0 ? 1.0f / step : 0.0f;
        for (int i = 0; i < GROUP; i++) {
            float whole = __builtin_rintf(values[g * GROUP + i] * factor);
            whole = whole < -8.0f ? -8.0f : whole > 7.0f ? 7.0f : whole;
            int quad = i / QUAD;
            uint8_t* byte = to + g * GROUP_BYTES + quad / 2 * PANEL * QUAD + i % QUAD;
            uint8_t stored = (uint8_t)((int)whole + OFFSET);
            *byte = quad % 2 ? *byte | (uint8_t)(stored << 4) : stored;
        }
    }
}

template <typename T>
static PyObject* pack(Arguments& given) {
    const T* weight = given.pointer<const T>();
    int64_t rows = given.integer(), inputs = given.integer();
    bool gated = given.integer() != 0;
    uint8_t* to = given.pointer<uint8_t>();
    float* scales = given.pointer<float>();
    if (given.failed()) return nullptr;
    int64_t panels = panels_of(rows, gated), groups = ceil_div(inputs, GROUP), work = 16 * rows * inputs;
    LongWork long_work(work);
    parallel_for(panels, 1, work, [=](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; panel++)
            for (int column = 0; column < PANEL; column++) {
                int64_t row = weight_row(panel, column, rows, gated);
                uint8_t* at = to + panel * groups * GROUP_BYTES;
                pack_column(weight + (row < rows ? row * inputs : 0), row < rows ? inputs : 0, groups,
                            at + column * QUAD, (int8_t*)at + GROUP_VALUES + column, scales + panel * PANEL + column);
            }
    });
    Py_RETURN_NONE;
}

static PyObject* linear_int4_method(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments given(values, count);
    if (!given.are(13)) return nullptr;
    bool from_bf16 = given.integer() != 0, to_bf16 = given.integer() != 0;
    if (from_bf16) return to_bf16 ? run<bf16, bf16>(given) : run<bf16, float>(given);
    return to_bf16 ? run<float, bf16>(given) : run<float, float>(given);
}

static PyObject* pack_int4_method(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments given(values, count);
    if (!given.are(7)) return nullptr;
    return given.integer() ? pack<bf16>(given) : pack<float>(given);
}

}  // namespace

#define ENTRY(name, text) {#name, (PyCFunction)(void (*)())name##_method, METH_FASTCALL, text}
extern PyMethodDef linear_int4_methods[];
PyMethodDef linear_int4_methods[] = {
    ENTRY(linear_int4, "Rows times 4-bit weights."),
    ENTRY(pack_int4, "Weights as 4-bit integers, in panels."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
