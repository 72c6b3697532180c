// What all kernel sources share: levels, bfloat16, arguments, threads.
//
// Conventions
// - Every csrc/NAME.cpp but module.cpp is compiled once per level ("generic", "avx2", "avx512"; setup.py has
//   their flags) with MILLSTREAM_LEVEL set to the level's name and one of MILLSTREAM_GENERIC, MILLSTREAM_AVX2
//   and MILLSTREAM_AVX512 set to 1. Everything in it stands in namespace millstream::MILLSTREAM_LEVEL, or is
//   static, or is in an unnamed namespace.
// - It defines `PyMethodDef NAME_methods[]` in namespace millstream::MILLSTREAM_LEVEL, ended by an entry of
//   nulls, of METH_FASTCALL functions. The build finds the file by itself; Python sees the functions of a level
//   as attributes of `_kernels.functions(level)`. Their signatures stand in backends/native/_kernels.pyi.
// - Arguments are integers and floats only; tensors come as addresses, sizes and strides as counts of elements.
//   Callers check shapes; a kernel checks nothing but the number of its arguments.
// - The linker keeps one copy of an inline function or template that several levels emit, perhaps the one with
//   instructions that the CPU lacks. So: no containers and no algorithms of the standard library; own helpers
//   are `static inline`, or templates inside the level's namespace.
// - A result may depend on nothing but the row's own inputs: not on the number of rows, of threads, nor on a
//   row's place among the others. The compiler keeps the order of roundings (-ffp-contract=off, no -ffast-math);
//   a fused multiply-add is written as one.
// - Scratch memory comes from scratch(): one growing buffer per thread and slot.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {

typedef uint16_t bf16;  // the upper half of a float's bits

static inline float bf16_to_float(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

// Rounds to the nearest, ties to even; no number stays no number.
static inline bf16 float_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return (bf16)((bits >> 16) | 0x40);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return bf16_to_float(x); }
static inline void from_float(float x, float* y) { *y = x; }
static inline void from_float(float x, bf16* y) { *y = float_to_bf16(x); }

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Reads the arguments of a METH_FASTCALL function one after the other.
class Arguments {
  public:
    Arguments(PyObject* const* values, Py_ssize_t count) : values_(values), count_(count) {}

    // False, with a Python error set, unless the caller gave `expected` arguments.
    bool are(Py_ssize_t expected) const {
        if (count_ == expected) return true;
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count_);
        return false;
    }
    int64_t integer() { return PyLong_AsLongLong(values_[next_++]); }
    double number() { return PyFloat_AsDouble(values_[next_++]); }
    // An address; 0 gives a null pointer.
    template <typename T>
    T* pointer() {
        return (T*)(uintptr_t)PyLong_AsUnsignedLongLong(values_[next_++]);
    }
    // True, with a Python error set, if any argument was of the wrong type.
    bool failed() const { return PyErr_Occurred() != nullptr; }

  private:
    PyObject* const* values_;
    Py_ssize_t count_;
    Py_ssize_t next_ = 0;
};

// Work worth starting threads for, and work worth letting other Python threads run meanwhile; in element
// operations, of which a core does about one per nanosecond.
static const int64_t PARALLEL_WORK = 30000;
static const int64_t CHUNK_WORK = 4000;  // what a thread computes before it looks for more
static const int64_t GIL_WORK = 200000;

// Gives the interpreter to other threads until the end of its scope, if `work` is long.
class LongWork {
  public:
    explicit LongWork(int64_t work) : state_(work >= GIL_WORK ? PyEval_SaveThread() : nullptr) {}
    ~LongWork() {
        if (state_) PyEval_RestoreThread(state_);
    }
    LongWork(const LongWork&) = delete;
    LongWork& operator=(const LongWork&) = delete;

  private:
    PyThreadState* state_;
};

// A body that computes `length` of 0 .. count per chunk.
template <typename Body>
struct Chunks {
    const Body& body;
    int64_t count, length;
    static void run(const void* chunks, int64_t chunk) {
        const Chunks& self = *(const Chunks*)chunks;
        self.body(chunk * self.length, least((chunk + 1) * self.length, self.count));
    }
};

// Calls body(begin, end) for parts of 0 .. count that are multiples of `grain` long, by several threads where
// `work`, over all, is worth them; neighbouring parts mostly by the same one. See run_chunks.
template <typename Body>
static inline void parallel_for(int64_t count, int64_t grain, int64_t work, const Body& body) {
    const int64_t grains = ceil_div(count, grain);
    const int64_t threads = least(least(thread_count(), grains), ceil_div(work, PARALLEL_WORK));
    if (threads <= 1) {
        if (count > 0) body((int64_t)0, count);
        return;
    }
    const int64_t length = ceil_div(grains, least(grains, most(threads, work / CHUNK_WORK))) * grain;
    const Chunks<Body> chunks = {body, count, length};
    run_chunks(ceil_div(count, length), threads, Chunks<Body>::run, &chunks);
}

// Calls body(task) for 0 .. count; tasks may be of different sizes.
template <typename Body>
static inline void parallel_tasks(int64_t count, int64_t work, const Body& body) {
    const auto all = [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) body(task);
    };
    if (work < 2 * PARALLEL_WORK) return all(0, count);
    parallel_for(count, 1, most(work, count * CHUNK_WORK), all);
}

static const int SCRATCH_SLOTS = 16;

struct Scratch {
    void* memory[SCRATCH_SLOTS] = {};
    size_t size[SCRATCH_SLOTS] = {};
    ~Scratch() {
        for (void* p : memory) free(p);
    }
};

// At least `count` elements, aligned to 64 bytes, of unknown content; valid until this thread asks for the same
// slot again.
template <typename T>
static inline T* scratch(int slot, int64_t count) {
    static thread_local Scratch mine;
    size_t bytes = ((size_t)count * sizeof(T) + 4095) & ~(size_t)4095;
    if (mine.size[slot] < bytes) {
        free(mine.memory[slot]);
        mine.memory[slot] = aligned_alloc(64, bytes);
        if (!mine.memory[slot]) abort();
        mine.size[slot] = bytes;
    }
    return (T*)mine.memory[slot];
}

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
