// Linear layers with 8-bit weights: one scale per output channel, one per row of activations.
#include "linear_common.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {
namespace {

static const int OFFSET = 128;          // of a stored weight
static const int64_t READ_AHEAD = 4096;  // bytes

#if defined(MILLSTREAM_AVX512)
static const int TILE_ROWS = 6;

// sums[r][c] = sum over i of a[r][i] * b[i][c] for R rows and the columns of a panel. Meanwhile `ahead`, memory that
// is needed later, is brought near, LINES cache lines per quad.
template <int R, int LINES>
static inline void multiply(const int8_t* a, int64_t stride, const uint8_t* b, int64_t quads, int32_t* sums,
                            const uint8_t* ahead) {
    __m512i sum[R][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < 4; v++) sum[r][v] = _mm512_setzero_si512();
    for (int64_t q = 0; q < quads; q++) {
        prefetch<LINES>(ahead);
        __m512i w[4];
        UNROLL for (int v = 0; v < 4; v++) w[v] = load_bytes(b + v * 64);
        UNROLL for (int r = 0; r < R; r++) {
            __m512i x = spread(a + r * stride);
            UNROLL for (int v = 0; v < 4; v++) add_dots(sum[r][v], w[v], x);
        }
        a += QUAD;
        b += PANEL * QUAD;
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < 4; v++) _mm512_store_si512(sums + r * PANEL + v * 16, sum[r][v]);
}
#else
static const int TILE_ROWS = 1;

template <int R, int LINES>
static inline void multiply(const int8_t* a, int64_t, const uint8_t* b, int64_t quads, int32_t* sums,
                            const uint8_t*) {
    static_assert(R == 1, "one row at a time");
    add_products(a, b, quads, 0, sums);
}
#endif

template <int R, int LINES, typename T>
static void tile(const QuantisedRows& x, int64_t row, const uint8_t* b, int64_t panel, const Output<T>& out,
                 const uint8_t* ahead) {
    alignas(64) int32_t sums[R * PANEL];
    multiply<R, LINES>(x.values + row * x.stride, x.stride, b, x.groups * GROUP / QUAD, sums, ahead);
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < PANEL; c++) sums[r * PANEL + c] -= OFFSET * x.totals[row + r];
        out.row(sums + r * PANEL, row + r, panel, x.scales[row + r]);
    }
}

template <int LINES, typename T>
static inline void tile_of(int64_t rows, const QuantisedRows& x, int64_t row, const uint8_t* b, int64_t panel,
                           const Output<T>& out, const uint8_t* ahead) {
    switch (rows) {
#if defined(MILLSTREAM_AVX512)
        case 2: return tile<2, LINES>(x, row, b, panel, out, ahead);
        case 3: return tile<3, LINES>(x, row, b, panel, out, ahead);
        case 4: return tile<4, LINES>(x, row, b, panel, out, ahead);
        case 5: return tile<5, LINES>(x, row, b, panel, out, ahead);
        case 6: return tile<6, LINES>(x, row, b, panel, out, ahead);
#endif
        default: return tile<1, LINES>(x, row, b, panel, out, ahead);
    }
}

// One panel. A single tile reads ahead in the panels; several bring the next panel near, each its part.
template <typename T>
static void tiles(const QuantisedRows& x, int64_t first, int64_t rows, const uint8_t* b, int64_t panel_bytes,
                  int64_t panel, const Output<T>& out) {
    int64_t count = ceil_div(rows, TILE_ROWS);
    if (count == 1) return tile_of<4>(rows, x, first, b, panel, out, b + READ_AHEAD);
    for (int64_t i = 0; i < count; i++) {
        int64_t begin = first + rows * i / count, end = first + rows * (i + 1) / count;
        const uint8_t* ahead = b + panel_bytes + panel_bytes * i / count / 64 * 64;
        if (count < 4)
            tile_of<2>(end - begin, x, begin, b, panel, out, ahead);
        else
            tile_of<1>(end - begin, x, begin, b, panel, out, ahead);
    }
}

template <typename In, typename T>
static PyObject* run(Arguments& given) {
    Product<In, T> product(given);
    if (given.failed()) return nullptr;
    int64_t panel_bytes = round_up(product.inputs, GROUP) * PANEL;
    LongWork long_work(product.work());
    QuantisedRows x = quantise(product.x, product.stride, product.rows, product.inputs);
    for_panels(product.panels(), product.rows, product.inputs, [&](int64_t panel, int64_t first, int64_t count) {
        tiles(x, first, count, product.weights + panel * panel_bytes, panel_bytes, panel, product.out);
    });
    Py_RETURN_NONE;
}

// One column of a panel: its weights, symmetric around zero, and their scale.
template <typename T>
static void pack_column(const T* row, int64_t inputs, int64_t padded, uint8_t* to, float* scale) {
    float top = 0;
    for (int64_t i = 0; i < inputs; i++) {
        float m = to_float(row[i]);
        m = m < 0 ? -m : m;
        top = m > top ? m : top;
    }
    *scale = top / 127.0f;
    float factor = top > 1e-30f ? 127.0f / top : 0.0f;
    for (int64_t i = 0; i < padded; i++) {
        float value = i < inputs ? to_float(row[i]) * factor : 0.0f;
        to[i / QUAD * PANEL * QUAD + i % QUAD] = (uint8_t)(__builtin_rintf(value) + OFFSET);
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
    int64_t panels = panels_of(rows, gated), padded = round_up(inputs, GROUP), work = rows * inputs;
    LongWork long_work(work);
    parallel_for(panels, 1, work, [=](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; panel++)
            for (int column = 0; column < PANEL; column++) {
                int64_t row = weight_row(panel, column, rows, gated);
                pack_column(weight + (row < rows ? row * inputs : 0), row < rows ? inputs : 0, padded,
                            to + panel * padded * PANEL + column * QUAD, scales + panel * PANEL + column);
            }
    });
    Py_RETURN_NONE;
}

// linear_int8(x is bfloat16, y is bfloat16, x, row stride, rows, inputs, weights, scales, bias, kind, y, row stride,
// outputs)
static PyObject* linear_int8_method(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments given(values, count);
    if (!given.are(13)) return nullptr;
    bool from_bf16 = given.integer() != 0, to_bf16 = given.integer() != 0;
    if (from_bf16) return to_bf16 ? run<bf16, bf16>(given) : run<bf16, float>(given);
    return to_bf16 ? run<float, bf16>(given) : run<float, float>(given);
}

// pack_int8(weight is bfloat16, weight, rows, inputs, gated, packed, scales)
static PyObject* pack_int8_method(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments given(values, count);
    if (!given.are(7)) return nullptr;
    return given.integer() ? pack<bf16>(given) : pack<float>(given);
}

}  // namespace

#define ENTRY(name, text) {#name, (PyCFunction)(void (*)())name##_method, METH_FASTCALL, text}
extern PyMethodDef linear_int8_methods[];
PyMethodDef linear_int8_methods[] = {
    ENTRY(linear_int8, "Rows times 8-bit weights."),
    ENTRY(pack_int8, "Weights as 8-bit integers, in panels."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
