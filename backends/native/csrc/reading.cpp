// Reads memory from end to end and does nothing else: how fast kernels that are bound by memory could be.
#include "vec.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {
namespace {

// The sum, without carry, of all bits from `at` on, whole vectors only.
static inline int32_t read(const uint8_t* at, int64_t bytes) {
    const int LANES = WIDTH * 4, STREAMS = 4;
    typedef int32_t lanes __attribute__((vector_size(LANES)));
    lanes sums[STREAMS] = {};
    for (int64_t i = 0; i + STREAMS * LANES <= bytes; i += STREAMS * LANES)
        for (int s = 0; s < STREAMS; s++) {
            lanes x;
            memcpy(&x, at + i + s * LANES, LANES);
            sums[s] ^= x;
        }
    lanes all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    int32_t found = 0;
    for (int i = 0; i < WIDTH; i++) found ^= all[i];
    return found;
}

// read_memory(address, bytes): each thread reads a part.
static PyObject* read_memory_method(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments given(values, count);
    if (!given.are(2)) return nullptr;
    const uint8_t* at = given.pointer<const uint8_t>();
    const int64_t bytes = given.integer();
    if (given.failed()) return nullptr;
    int32_t found = 0;
    {
        LongWork long_work(bytes);
        parallel_for(bytes, 65536, bytes, [&](int64_t begin, int64_t end) {
            __atomic_fetch_xor(&found, read(at + begin, end - begin), __ATOMIC_RELAXED);
        });
    }
    return PyLong_FromLong(found);
}

}  // namespace

extern PyMethodDef reading_methods[];
PyMethodDef reading_methods[] = {
    {"read_memory", (PyCFunction)(void (*)())read_memory_method, METH_FASTCALL, "All bits of a piece of memory."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
