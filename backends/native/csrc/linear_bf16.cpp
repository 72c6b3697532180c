// Linear layers in bfloat16 with sums in float32, for CPUs that multiply bfloat16 in AVX-512.
//
// A panel holds, for every two inputs and for each of its columns, both weights side by side. The sum of an output
// is taken over the inputs from the first to the last, two at a time, whatever the number of rows.
#include "linear_common.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {
namespace {

#if defined(MILLSTREAM_AVX512)
static const int PAIR = 2;
static const int TILE_ROWS = 6;
static const int64_t READ_AHEAD = 4096;  // bytes

static inline void add_pairs(__m512& sum, __m512i weights, __m512i inputs) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(inputs));
}

// sums[r][c] = sum over i of a[r][i] * b[i][c]; see the function of this name for 8-bit weights.
template <int R, int LINES>
static inline void multiply(const bf16* a, int64_t stride, const bf16* b, int64_t pairs, float* sums,
                            const uint8_t* ahead) {
    __m512 sum[R][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < 4; v++) sum[r][v] = _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; p++) {
        prefetch<LINES>(ahead);
        __m512i w[4];
        UNROLL for (int v = 0; v < 4; v++) w[v] = load_bytes((const uint8_t*)b + v * 64);
        UNROLL for (int r = 0; r < R; r++) {
            __m512i x = spread((const int8_t*)(a + r * stride));
            UNROLL for (int v = 0; v < 4; v++) add_pairs(sum[r][v], w[v], x);
        }
        a += PAIR;
        b += PANEL * PAIR;
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < 4; v++) _mm512_store_ps(sums + r * PANEL + v * 16, sum[r][v]);
}

struct Rows {
    const bf16* values;
    int64_t stride, pairs;
};

template <int R, int LINES, typename T>
static void tile(const Rows& x, int64_t row, const bf16* b, int64_t panel, const Output<T>& out,
                 const uint8_t* ahead) {
    alignas(64) float sums[R * PANEL];
    multiply<R, LINES>(x.values + row * x.stride, x.stride, b, x.pairs, sums, ahead);
    for (int r = 0; r < R; r++) {
        vec values[VECTORS];
        for (int v = 0; v < VECTORS; v++) values[v] = load(sums + r * PANEL + v * WIDTH);
        out.finish(values, row + r, panel);
    }
}

template <int LINES, typename T>
static inline void tile_of(int64_t rows, const Rows& x, int64_t row, const bf16* b, int64_t panel,
                           const Output<T>& out, const uint8_t* ahead) {
    switch (rows) {
        case 2: return tile<2, LINES>(x, row, b, panel, out, ahead);
        case 3: return tile<3, LINES>(x, row, b, panel, out, ahead);
        case 4: return tile<4, LINES>(x, row, b, panel, out, ahead);
        case 5: return tile<5, LINES>(x, row, b, panel, out, ahead);
        case 6: return tile<6, LINES>(x, row, b, panel, out, ahead);
        default: return tile<1, LINES>(x, row, b, panel, out, ahead);
    }
}

// One panel. A single tile reads ahead in the panels; several bring the next panel near, each its part.
template <typename T>
static void tiles(const Rows& x, int64_t first, int64_t rows, const bf16* b, int64_t panel, const Output<T>& out) {
    int64_t count = ceil_div(rows, TILE_ROWS), bytes = x.pairs * PANEL * PAIR * (int64_t)sizeof(bf16);
    const uint8_t* at = (const uint8_t*)b;
    if (count == 1) return tile_of<4>(rows, x, first, b, panel, out, at + READ_AHEAD);
    for (int64_t i = 0; i < count; i++) {
        int64_t begin = first + rows * i / count, end = first + rows * (i + 1) / count;
        const uint8_t* ahead = at + bytes + bytes * i / count / 64 * 64;
        if (count < 4)
            tile_of<2>(end - begin, x, begin, b, panel, out, ahead);
        else
            tile_of<1>(end - begin, x, begin, b, panel, out, ahead);
    }
}

template <typename T>
static PyObject* run(Arguments& given) {
    Rows x;
    x.values = given.pointer<const bf16>();
    x.stride = given.integer();
    int64_t rows = given.integer(), inputs = given.integer();
    x.pairs = inputs / PAIR;
    const bf16* weights = given.pointer<const bf16>();
    Output<T> out;
    out.scales = nullptr;
    out.bias = given.pointer<const float>();
    out.kind = (int)given.integer();
    out.y = given.pointer<T>();
    out.stride = given.integer();
    out.outputs = given.integer();
    if (given.failed()) return nullptr;
    int64_t panels = ceil_div(out.outputs, out.columns());
    LongWork long_work(2 * panels * inputs * (rows + 8));
    for_panels(panels, rows, 2 * inputs, [&](int64_t panel, int64_t first, int64_t part) {
        tiles(x, first, part, weights + panel * inputs * PANEL, panel, out);
    });
    Py_RETURN_NONE;
}

// linear_bf16(y is bfloat16, x, row stride, rows, inputs, weights, bias, kind, y, row stride, outputs)
// The number of inputs is even.
static PyObject* linear_bf16_method(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments given(values, count);
    if (!given.are(11)) return nullptr;
    return given.integer() ? run<bf16>(given) : run<float>(given);
}

// pack_bf16(weight, rows, inputs, gated, packed)
static PyObject* pack_bf16_method(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments given(values, count);
    if (!given.are(5)) return nullptr;
    const bf16* weight = given.pointer<const bf16>();
    int64_t rows = given.integer(), inputs = given.integer();
    bool gated = given.integer() != 0;
    bf16* to = given.pointer<bf16>();
    if (given.failed()) return nullptr;
    int64_t panels = panels_of(rows, gated), work = rows * inputs;
    LongWork long_work(work);
    parallel_for(panels, 1, work, [=](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; panel++)
            for (int column = 0; column < PANEL; column++) {
                int64_t row = weight_row(panel, column, rows, gated);
                bf16* at = to + panel * inputs * PANEL + column * PAIR;
                for (int64_t i = 0; i < inputs; i++)
                    at[i / PAIR * PANEL * PAIR + i % PAIR] = row < rows ? weight[row * inputs + i] : (bf16)0;
            }
    });
    Py_RETURN_NONE;
}
#endif

}  // namespace

#define ENTRY(name, text) {#name, (PyCFunction)(void (*)())name##_method, METH_FASTCALL, text}
extern PyMethodDef linear_bf16_methods[];
PyMethodDef linear_bf16_methods[] = {
#if defined(MILLSTREAM_AVX512)
    ENTRY(linear_bf16, "Rows times bfloat16 weights."),
    ENTRY(pack_bf16, "Bfloat16 weights in panels."),
#endif
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
