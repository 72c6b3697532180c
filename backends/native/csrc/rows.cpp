// What works on rows of activations: RMS norm, gated activations, quantisation, rotary embedding and cache writes.
#include "activation.h"
#include "cache.h"
#include "vec.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {

namespace {

// The sum of squares of a row, in WIDTH x 2 interleaved partial sums.
template <typename T>
static inline float squares(const T* x, int64_t n) {
    vec even = {}, odd = {};
    int64_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        vec a = load(x + i), b = load(x + i + WIDTH);
        even = fma(a, a, even);
        odd = fma(b, b, odd);
    }
    for (; i < n; i += WIDTH) {
        vec a = load(x + i, least(WIDTH, n - i));
        even = fma(a, a, even);
    }
    return sum(even + odd);
}

template <typename T>
static inline void normalise(const T* x, const float* weight, float eps, T* out, int64_t n) {
    vec factor = set(1.0f / __builtin_sqrtf(squares(x, n) / (float)n + eps));
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) store(out + i, load(x + i) * factor * load(weight + i));
    if (i < n) store(out + i, load(x + i, n - i) * factor * load(weight + i, n - i), n - i);
}

template <typename T>
static inline void add(T* residual, const T* x, int64_t n) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) store(residual + i, load(residual + i) + load(x + i));
    if (i < n) store(residual + i, load(residual + i, n - i) + load(x + i, n - i), n - i);
}

// x is [outer, inner, n] with strides; out may be x, then with the same strides.
template <typename T>
static PyObject* rms_norm(Arguments& given) {
    const T* x = given.pointer<const T>();
    int64_t outer_stride = given.integer(), inner_stride = given.integer();
    const float* weight = given.pointer<const float>();
    double eps = given.number();
    T* out = given.pointer<T>();
    int64_t out_outer_stride = given.integer(), out_inner_stride = given.integer();
    int64_t outer = given.integer(), inner = given.integer(), n = given.integer();
    if (given.failed()) return nullptr;
    int64_t work = outer * inner * n / 8;
    LongWork long_work(work);
    parallel_for(outer, 1, work, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
            for (int64_t k = 0; k < inner; k++)
                normalise(x + i * outer_stride + k * inner_stride, weight, (float)eps,
                          out + i * out_outer_stride + k * out_inner_stride, n);
    });
    Py_RETURN_NONE;
}

template <typename T>
static PyObject* add_rms_norm(Arguments& given) {
    T* residual = given.pointer<T>();
    const T* x = given.pointer<const T>();
    const float* weight = given.pointer<const float>();
    double eps = given.number();
    T* out = given.pointer<T>();
    int64_t rows = given.integer(), n = given.integer();
    if (given.failed()) return nullptr;
    int64_t work = rows * n / 4;
    LongWork long_work(work);
    parallel_for(rows, 1, work, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            add(residual + i * n, x + i * n, n);
            normalise(residual + i * n, weight, (float)eps, out + i * n, n);
        }
    });
    Py_RETURN_NONE;
}

template <typename T, typename Activation>
static void gated(const T* gate_up, T* out, int64_t rows, int64_t n, int64_t work) {
    parallel_for(rows, 1, work, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const T *gate = gate_up + row * 2 * n, *up = gate + n;
            T* to = out + row * n;
            int64_t i = 0;
            for (; i + WIDTH <= n; i += WIDTH) store(to + i, Activation::of(load(gate + i)) * load(up + i));
            if (i < n) store(to + i, Activation::of(load(gate + i, n - i)) * load(up + i, n - i), n - i);
        }
    });
}

// The first argument says which: 0 SiLU, 1 GELU, 2 GELU by tanh.
template <typename T>
static PyObject* gated_activation(Arguments& given) {
    int64_t kind = given.integer();
    const T* gate_up = given.pointer<const T>();
    T* out = given.pointer<T>();
    int64_t rows = given.integer(), n = given.integer();
    if (given.failed()) return nullptr;
    int64_t work = rows * n / 4;
    LongWork long_work(work);
    if (kind == 0)
        gated<T, Silu>(gate_up, out, rows, n, work);
    else if (kind == 1)
        gated<T, Gelu>(gate_up, out, rows, n, work);
    else
        gated<T, GeluTanh>(gate_up, out, rows, n, work);
    Py_RETURN_NONE;
}

// Each row symmetrically: x is about scale * q, with q in -127 .. 127.
template <typename T>
static PyObject* quantise_rows(Arguments& given) {
    const T* x = given.pointer<const T>();
    int64_t stride = given.integer();
    int8_t* out = given.pointer<int8_t>();
    float* scales = given.pointer<float>();
    int64_t rows = given.integer(), n = given.integer();
    if (given.failed()) return nullptr;
    int64_t work = rows * n / 8;
    LongWork long_work(work);
    parallel_for(rows, 1, work, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const T* from = x + row * stride;
            vec top = {};
            for (int64_t i = 0; i < n; i += WIDTH)
                top = larger(top, magnitude(load(from + i, least(WIDTH, n - i))));
            float most_magnitude = largest(top);
            scales[row] = most_magnitude / 127.0f;
            vec factor = set(most_magnitude > 0 ? 127.0f / most_magnitude : 0.0f);
            for (int64_t i = 0; i < n; i += WIDTH) {
                int64_t count = least(WIDTH, n - i);
                store_int8(out + row * n + i, load(from + i, count) * factor, count);
            }
        }
    });
    Py_RETURN_NONE;
}

// x[i] * cos[i] + x[i + half or i - half] * sin[i], for i < 2 * half.
template <typename T>
static inline void rotate(T* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i += WIDTH) {
        int64_t n = least(WIDTH, half - i);
        vec low = load(x + i, n), high = load(x + half + i, n);
        store(x + i, fma(low, load(cos + i, n), high * load(sin + i, n)), n);
        store(x + half + i, fma(high, load(cos + half + i, n), low * load(sin + half + i, n)), n);
    }
}

// How a vector of keys or values becomes codes, to the nearest: in 8 bits code = x * factor, in 4 bits
// code = x * factor + zero. The scale is no number where an element is none, or infinite.
struct Coding {
    float scale, factor;
    int zero;

    template <typename T>
    Coding(Mode mode, const T* x, int64_t n) : scale(0), factor(0), zero(0) {
        float low = 0, high = 0;
        bool finite = true;
        for (int64_t i = 0; i < n; i++) {
            const float y = to_float(x[i]);
            finite = finite && y - y == 0;
            low = y < low ? y : low;
            high = y > high ? y : high;
        }
        if (!finite) {
            scale = __builtin_nanf("");
            return;
        }
        const float reach = mode == UINT4 ? high - low : high > -low ? high : -low;
        const float codes = mode == UINT4 ? 15.0f : 127.0f;
        scale = reach / codes;
        factor = reach > 0 ? codes / reach : 0.0f;
        if (mode == UINT4) zero = (int)__builtin_rintf(-low * factor);
    }

    template <typename T>
    int of(T x) const {
        return factor == 0 ? zero : (int)__builtin_rintf(to_float(x) * factor) + zero;
    }
    template <typename T>
    int of_four_bits(T x) const {
        const int code = of(x);
        return code < 0 ? 0 : code > 15 ? 15 : code;
    }
};

template <typename T>
struct Store {
    Layout<T> layout;
    unit* cache;
    const int64_t* slots;
    const uint8_t* clears;  // null: none; else rows behind which the rest of the block is forgotten

    void token(int64_t row, int64_t kv_head, const T* key, const T* value) const {
        if (layout.mode == PLAIN)
            token_units(row, kv_head, key, value);
        else
            token_codes(row, kv_head, key, value);
    }

    void token_units(int64_t row, int64_t kv_head, const T* key, const T* value) const {
        const int64_t size = layout.block_size, padded = layout.padded(), dim = layout.dim;
        const int64_t per_unit = PerUnit<T>::value;
        const int64_t slot = slots[row], offset = slot % size;
        unit* head = cache + layout.head(slot / size, kv_head);
        const unit* pairs = (const unit*)key;
        for (int64_t u = 0; u < dim / per_unit; u++) memcpy(head + u * size + offset, pairs + u, 4);
        unit* line = head + layout.key_units() + offset / per_unit * padded;
        T* values = (T*)line + offset % per_unit;
        for (int64_t i = 0; i < dim; i++) values[i * per_unit] = value[i];
        if (clears && clears[row]) {
            if (offset % per_unit == 0)
                for (int64_t i = 0; i < dim; i++)
                    for (int64_t k = 1; k < per_unit; k++) values[i * per_unit + k] = T();
            memset(line + padded, 0, ((size - offset - 1) / per_unit) * padded * sizeof(unit));
        }
    }

    void token_codes(int64_t row, int64_t kv_head, const T* key, const T* value) const {
        const int64_t size = layout.block_size, padded = layout.padded(), dim = layout.dim;
        const int64_t slot = slots[row], offset = slot % size;
        const Codes<T> codes(layout, cache + layout.head(slot / size, kv_head));
        const Coding keys(layout.mode, key, dim), values(layout.mode, value, dim);
        codes.key_scales[offset] = keys.scale;
        codes.value_scales[offset] = values.scale;
        if (layout.mode == INT8) {
            for (int64_t i = 0; i < dim; i++) {
                codes.keys[i * size + offset] = (uint8_t)keys.of(key[i]);
                codes.values[offset * padded + i] = (uint8_t)values.of(value[i]);
            }
            return;
        }
        codes.key_zeros[offset] = (uint8_t)keys.zero;
        codes.value_zeros[offset] = (uint8_t)values.zero;
        for (int64_t i = 0; i < dim; i += 2)
            codes.keys[i / 2 * size + offset] = keys.of_four_bits(key[i]) | keys.of_four_bits(key[i + 1]) << 4;
        uint8_t* line = codes.values + offset * padded / 2;
        memset(line, 0, padded / 2);
        for (int64_t i = 0; i < dim; i++)
            line[i / 32 * 16 + i % 16] |= values.of_four_bits(value[i]) << (i % 32 < 16 ? 0 : 4);
    }
};

template <typename T>
static Store<T> read_store(Arguments& given) {
    Store<T> store = {};
    store.cache = given.pointer<unit>();
    store.layout.kv_heads = given.integer();
    store.layout.dim = given.integer();
    store.layout.block_size = given.integer();
    store.layout.mode = (Mode)given.integer();
    store.slots = given.pointer<const int64_t>();
    store.clears = given.pointer<const uint8_t>();
    return store;
}

template <typename T>
static PyObject* write(Arguments& given) {
    const Store<T> store = read_store<T>(given);
    int64_t tokens = given.integer();
    const T* key = given.pointer<const T>();
    int64_t key_token_stride = given.integer(), key_head_stride = given.integer();
    const T* value = given.pointer<const T>();
    int64_t value_token_stride = given.integer(), value_head_stride = given.integer();
    if (given.failed()) return nullptr;
    int64_t work = tokens * store.layout.kv_heads * store.layout.dim;
    LongWork long_work(work);
    parallel_for(tokens, 1, work, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++)
            for (int64_t head = 0; head < store.layout.kv_heads; head++)
                store.token(row, head, key + row * key_token_stride + head * key_head_stride,
                            value + row * value_token_stride + head * value_head_stride);
    });
    Py_RETURN_NONE;
}

template <typename T>
static PyObject* rotate_write(Arguments& given) {
    const Store<T> store = read_store<T>(given);
    int64_t tokens = given.integer();
    T* qkv = given.pointer<T>();
    int64_t heads = given.integer();
    const float *cos = given.pointer<const float>(), *sin = given.pointer<const float>();
    int64_t width = given.integer();
    if (given.failed()) return nullptr;
    const int64_t kv_heads = store.layout.kv_heads, dim = store.layout.dim;
    int64_t work = tokens * (heads + 4 * kv_heads) * dim / 4;
    LongWork long_work(work);
    parallel_for(tokens, 1, work, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            T* at = qkv + row * (heads + 2 * kv_heads) * dim;
            for (int64_t head = 0; head < heads + kv_heads; head++)
                rotate(at + head * dim, cos + row * width, sin + row * width, width / 2);
            for (int64_t head = 0; head < kv_heads; head++)
                store.token(row, head, at + (heads + head) * dim, at + (heads + kv_heads + head) * dim);
        }
    });
    Py_RETURN_NONE;
}

// The first argument of every function is the type of the activations: 0 float32, 1 bfloat16.
#define METHOD(name, arguments)                                                                     \
    static PyObject* name##_method(PyObject*, PyObject* const* values, Py_ssize_t count) {          \
        Arguments given(values, count);                                                             \
        if (!given.are(arguments)) return nullptr;                                                  \
        return given.integer() ? name<bf16>(given) : name<float>(given);                            \
    }
METHOD(rms_norm, 12)
METHOD(add_rms_norm, 8)
METHOD(gated_activation, 6)
METHOD(quantise_rows, 7)
METHOD(write, 15)
METHOD(rotate_write, 14)

}  // namespace

#define ENTRY(name, text) {#name, (PyCFunction)(void (*)())name##_method, METH_FASTCALL, text}
extern PyMethodDef rows_methods[];
PyMethodDef rows_methods[] = {
    ENTRY(rms_norm, "RMS norm of the rows of [outer, inner, n]."),
    ENTRY(add_rms_norm, "Residual sum and its RMS norm."),
    ENTRY(gated_activation, "Activation of the first half times the second half."),
    ENTRY(quantise_rows, "Rows as int8 with a scale each."),
    ENTRY(write, "Keys and values into the cache."),
    ENTRY(rotate_write, "Rotary embedding, then keys and values into the cache."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
