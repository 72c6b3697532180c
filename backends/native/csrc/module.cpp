// The Python module: one table of functions per level that was built and that this CPU can run.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "threads.h"

// tables.inc, written by the build, has a line LEVEL(level, TABLE(level, source) ...) per level, worst first.
#define TABLE(level, source)                                                      \
    namespace millstream {                                                        \
    namespace level {                                                             \
    extern __attribute__((visibility("hidden"))) PyMethodDef source##_methods[];  \
    }                                                                             \
    }
#define LEVEL(level, tables) tables
#include "tables.inc"
#undef TABLE
#undef LEVEL

namespace {

bool runs(const char* level) {
    if (!strcmp(level, "generic")) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(level, "avx2")) return avx2;
    if (!strcmp(level, "avx512"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#endif
    return false;
}

// Adds a namespace of the level's functions to `found` and its name to the front of `names`.
bool add(PyObject* found, PyObject* names, const char* level, PyMethodDef* const* tables) {
    if (!runs(level)) return true;
    PyObject* functions = PyModule_New(level);
    bool good = functions != nullptr;
    for (; good && *tables; tables++) good = PyModule_AddFunctions(functions, *tables) == 0;
    good = good && PyDict_SetItemString(found, level, functions) == 0;
    Py_XDECREF(functions);
    PyObject* name = good ? PyUnicode_FromString(level) : nullptr;
    good = name && PyList_Insert(names, 0, name) == 0;
    Py_XDECREF(name);
    return good;
}

PyObject* found_levels = nullptr;

PyObject* functions(PyObject*, PyObject* level) {
    PyObject* table = PyDict_GetItemWithError(found_levels, level);
    if (!table) {
        if (!PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, level);
        return nullptr;
    }
    Py_INCREF(table);
    return table;
}

PyObject* set_threads(PyObject*, PyObject* number) {
    const long long count = PyLong_AsLongLong(number);
    if (count == -1 && PyErr_Occurred()) return nullptr;
    if (count < 1 || count > millstream::MOST_THREADS) {
        PyErr_Format(PyExc_ValueError, "threads is %lld; allowed: 1 to %d", count, (int)millstream::MOST_THREADS);
        return nullptr;
    }
    millstream::set_thread_count(count);
    Py_RETURN_NONE;
}

PyObject* threads(PyObject*, PyObject*) { return PyLong_FromLongLong(millstream::thread_count()); }

PyMethodDef methods[] = {
    {"set_threads", set_threads, METH_O, "How many threads the kernels that this thread calls take from now on."},
    {"threads", threads, METH_NOARGS, "How many threads the kernels that this thread calls take."},
    {"functions", functions, METH_O, "The kernels of one of LEVELS."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", "Native kernels, one set per level.", -1, methods};

bool fill(PyObject* module) {
    found_levels = PyDict_New();
    PyObject* names = PyList_New(0);
    bool good = found_levels && names;
#define TABLE(level, source) millstream::level::source##_methods,
#define LEVEL(level, tables)                             \
    if (good) {                                          \
        PyMethodDef* const all[] = {tables nullptr};     \
        good = add(found_levels, names, #level, all);    \
    }
#include "tables.inc"
    PyObject* levels = good ? PyList_AsTuple(names) : nullptr;
    Py_XDECREF(names);
    good = levels && PyModule_AddObjectRef(module, "LEVELS", levels) == 0;
    Py_XDECREF(levels);
    return good;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__kernels() {
    PyObject* module = PyModule_Create(&definition);
    if (module && !fill(module)) Py_CLEAR(module);
    return module;
}
