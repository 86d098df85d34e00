// The module streamkm.kernels._cpu: assignment and accumulation in cache-sized tiles.
//
// It takes addresses of arrays whose dtype, shape and lifetime kernels/cpu.py answers for,
// lets go of Python's lock, and divides the work among a pool of threads. What a thread
// computes does not depend on how many there are. The same tiles are compiled for several
// instruction sets, and the best that the processor has is taken when it is known.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>

#include "jobs.h"
#include "pool.h"

#define INLINE inline __attribute__((always_inline))

#if defined(__clang__)
#define BEGIN_TARGET(features) \
    PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define BEGIN_TARGET(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define END_TARGET PRAGMA(GCC pop_options)
#endif
#define PRAGMA(text) _Pragma(#text)

// By integer arithmetic, which compilers vectorise: shifted into place, the bits are the value
// divided by 2^112, for numbers below the normal ones too.
struct Float16 {
    uint16_t bits;
    explicit operator float() const {
        const uint32_t magnitude = uint32_t{bits} & 0x7FFF;
        const uint32_t wide = magnitude << 13, sign = (uint32_t{bits} & 0x8000) << 16;
        float scaled;
        std::memcpy(&scaled, &wide, sizeof scaled);
        scaled *= 0x1p112f;
        uint32_t result;
        std::memcpy(&result, &scaled, sizeof result);
        // Infinity and NaN have all bits of the exponent.
        result |= (magnitude >= 0x7C00 ? 0x7F800000 : 0) | sign;
        std::memcpy(&scaled, &result, sizeof scaled);
        return scaled;
    }
    explicit operator double() const { return static_cast<float>(*this); }
};

// bfloat16 is the upper half of a float32.
struct BFloat16 {
    uint16_t bits;
    explicit operator float() const {
        const uint32_t wide = uint32_t{bits} << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
    explicit operator double() const { return static_cast<float>(*this); }
};

#if defined(__x86_64__)

BEGIN_TARGET("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
#define VECTOR_BYTES 64
#define TILE_ROWS 12
#include "kernels.h"
#undef VECTOR_BYTES
#undef TILE_ROWS
}  // namespace avx512
END_TARGET

BEGIN_TARGET("avx2,fma,f16c")
namespace avx2 {
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#include "kernels.h"
#undef VECTOR_BYTES
#undef TILE_ROWS
}  // namespace avx2
END_TARGET

#endif

namespace baseline {
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#include "kernels.h"
}  // namespace baseline

namespace {

// Every dtype that rows may be stored in, by torch's name.
#define FOR_EACH_STORED_TYPE(use)                                                     \
    use("float16", Float16)  use("bfloat16", BFloat16) use("float32", float)          \
    use("float64", double) use("uint8", uint8_t) use("int8", int8_t)                  \
    use("uint16", uint16_t) use("int16", int16_t) use("uint32", uint32_t)             \
    use("int32", int32_t) use("uint64", uint64_t) use("int64", int64_t)
constexpr int N_STORED_TYPES = 12;

// The functions of one instruction set, for one dtype.
template <class T>
struct Functions {
    int64_t panel_width, block_rows;
    void (*pack_panel)(const AssignJob<T>&, int64_t panel);
    int64_t (*assign_block)(const AssignJob<T>&, int64_t start, int64_t stop);
    void (*recheck_row)(const AssignJob<T>&, int64_t row);
    void (*accumulate_cluster)(const AccumulateJob<T>&, int64_t cluster, int64_t column,
                               int64_t stop);
    void (*measure_rows)(const DistanceJob<T>&, int64_t start, int64_t stop);
    void (*move_cluster)(const MoveJob<T>&, int64_t cluster);
    // By the number of the stored dtype.
    void (*gather_rows[N_STORED_TYPES])(const GatherJob<T>&, int64_t start, int64_t stop);
};

#define GATHER_ROWS(name, Stored) gather_rows<Stored, Element>,
#define FUNCTIONS(set, T)                                                             \
    []() -> Functions<T> {                                                            \
        using namespace set;                                                          \
        using Element = T;                                                            \
        return {panel_width<T>(), BLOCK_ROWS,            pack_panel<T>,               \
                assign_block<T>,  recheck_row<T>,        accumulate_cluster<T>,       \
                measure_rows<T>,  move_cluster<T>,                                    \
                {FOR_EACH_STORED_TYPE(GATHER_ROWS)}};                                 \
    }()

struct InstructionSet {
    const char* name;
    bool (*is_supported)();
    Functions<float> of_float;
    Functions<double> of_double;
};

// Best first.
const InstructionSet instruction_sets[] = {
#if defined(__x86_64__)
    {"avx512",
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
     },
     FUNCTIONS(avx512, float), FUNCTIONS(avx512, double)},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
     FUNCTIONS(avx2, float), FUNCTIONS(avx2, double)},
#endif
    {"baseline", [] { return true; }, FUNCTIONS(baseline, float), FUNCTIONS(baseline, double)},
};

template <class T>
const Functions<T>& functions_of(const InstructionSet& set) {
    if constexpr (std::is_same_v<T, float>) {
        return set.of_float;
    } else {
        return set.of_double;
    }
}

int64_t parts_of(int64_t n, int64_t part) { return (n + part - 1) / part; }

// Labels of all rows, and in how many cases screening left a doubt; if `rechecks`, they are right.
template <class T>
int64_t assign(const Functions<T>& functions, AssignJob<T>& job, bool rechecks, int n_threads) {
    Pool& pool = Pool::instance();
    pool.run(parts_of(job.k, functions.panel_width), n_threads,
             [&](int64_t panel) { functions.pack_panel(job, panel); });
    job.longest_sq = *std::max_element(job.c_sq, job.c_sq + job.k);
    std::atomic<int64_t> n_uncertain{0};
    pool.run(parts_of(job.n_rows, functions.block_rows), n_threads, [&](int64_t block) {
        const int64_t start = block * functions.block_rows;
        n_uncertain += functions.assign_block(
            job, start, std::min(start + functions.block_rows, job.n_rows));
    });
    if (rechecks && n_uncertain > 0) {
        // In pieces: rows in doubt may lie together.
        constexpr int64_t ROWS_AT_ONCE = 64;
        pool.run(parts_of(job.n_rows, ROWS_AT_ONCE), n_threads, [&](int64_t part) {
            const int64_t stop = std::min((part + 1) * ROWS_AT_ONCE, job.n_rows);
            for (int64_t row = part * ROWS_AT_ONCE; row < stop; ++row) {
                if (job.uncertain[row]) functions.recheck_row(job, row);
            }
        });
    }
    return n_uncertain;
}

// Columns of a sum that one thread takes at a time, so that one large cluster is shared.
constexpr int64_t SLICE_COLUMNS = 64;

template <class T>
void accumulate(const Functions<T>& functions, const AccumulateJob<T>& job, int n_threads) {
    const int64_t n_sums = job.k * parts_of(job.n_features, SLICE_COLUMNS);
    const int64_t n_together = std::max<int64_t>(n_sums / (int64_t{n_threads} * 16), 1);
    Pool::instance().run(parts_of(n_sums, n_together), n_threads, [&](int64_t task) {
        const int64_t stop = std::min((task + 1) * n_together, n_sums);
        // By slices first: neighbouring sums are of other clusters.
        for (int64_t sum = task * n_together; sum < stop; ++sum) {
            const int64_t cluster = sum % job.k, column = sum / job.k * SLICE_COLUMNS;
            if (job.offsets[cluster] == job.offsets[cluster + 1]) continue;
            functions.accumulate_cluster(job, cluster, column,
                                         std::min(column + SLICE_COLUMNS, job.n_features));
        }
    });
}

// Calls `work(start, stop)` for so many rows at a time.
template <class Work>
void for_each_part(int64_t n_rows, int n_threads, const Work& work) {
    constexpr int64_t ROWS_AT_ONCE = 256;
    Pool::instance().run(parts_of(n_rows, ROWS_AT_ONCE), n_threads, [&](int64_t part) {
        work(part * ROWS_AT_ONCE, std::min((part + 1) * ROWS_AT_ONCE, n_rows));
    });
}

template <class T>
void gather(const Functions<T>& functions, int stored, const GatherJob<T>& job, int n_threads) {
    for_each_part(job.n_rows, n_threads, [&](int64_t start, int64_t stop) {
        functions.gather_rows[stored](job, start, stop);
    });
}

template <class T>
void measure(const Functions<T>& functions, const DistanceJob<T>& job, int n_threads) {
    for_each_part(job.n_rows, n_threads, [&](int64_t start, int64_t stop) {
        functions.measure_rows(job, start, stop);
    });
}

// Sum of the squared steps, in the order of the clusters.
template <class T>
double move(const Functions<T>& functions, const MoveJob<T>& job, int64_t k, int n_threads) {
    constexpr int64_t CLUSTERS_AT_ONCE = 16;
    Pool::instance().run(parts_of(k, CLUSTERS_AT_ONCE), n_threads, [&](int64_t part) {
        const int64_t stop = std::min((part + 1) * CLUSTERS_AT_ONCE, k);
        for (int64_t cluster = part * CLUSTERS_AT_ONCE; cluster < stop; ++cluster) {
            functions.move_cluster(job, cluster);
        }
    });
    return std::accumulate(job.sq_steps, job.sq_steps + k, 0.0);
}

// Sorts row numbers by label, keeping their order; false if a label is not within 0 to k.
bool sort_by_label(const int64_t* labels, int64_t n_rows, int64_t k, int32_t* rows,
                   int64_t* offsets) {
    std::fill_n(offsets, k + 1, 0);
    for (int64_t row = 0; row < n_rows; ++row) {
        if (labels[row] < 0 || labels[row] >= k) return false;
        ++offsets[labels[row] + 1];
    }
    for (int64_t cluster = 0; cluster < k; ++cluster) offsets[cluster + 1] += offsets[cluster];
    // Each offset moves to its cluster's end while the cluster is filled, which is where
    // the next one began: shifted by one they are right again.
    for (int64_t row = 0; row < n_rows; ++row) {
        rows[offsets[labels[row]]++] = static_cast<int32_t>(row);
    }
    std::memmove(offsets + 1, offsets, k * sizeof *offsets);
    offsets[0] = 0;
    return true;
}

template <class T>
T* at(unsigned long long address) {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

struct AssignArguments {
    unsigned long long x, sq_norms, centroids, packed, c_sq, labels, sq_distances, uncertain;
    long long n_rows, n_features, k;
    double rounding;
    int rechecks, n_threads;
    unsigned long long second_sq_distances = 0;
};

template <class T>
int64_t assign_from(const InstructionSet& set, const AssignArguments& given) {
    AssignJob<T> job{at<T>(given.x),        at<T>(given.sq_norms), at<T>(given.centroids),
                     at<T>(given.packed),   at<T>(given.c_sq),     at<int64_t>(given.labels),
                     at<T>(given.sq_distances),   at<bool>(given.uncertain),
                     given.n_rows,          given.n_features,      given.k,
                     static_cast<T>(given.rounding), 0,    at<T>(given.second_sq_distances)};
    return assign(functions_of<T>(set), job, given.rechecks, given.n_threads);
}

PyObject* py_assign(PyObject*, PyObject* args) {
    int set, is_double;
    AssignArguments given;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKLLLdpi|K", &set, &is_double, &given.x, &given.sq_norms,
                          &given.centroids, &given.packed, &given.c_sq, &given.labels,
                          &given.sq_distances, &given.uncertain, &given.n_rows, &given.n_features,
                          &given.k, &given.rounding, &given.rechecks, &given.n_threads,
                          &given.second_sq_distances)) {
        return nullptr;
    }
    int64_t n_uncertain;
    Py_BEGIN_ALLOW_THREADS;
    n_uncertain = is_double ? assign_from<double>(instruction_sets[set], given)
                            : assign_from<float>(instruction_sets[set], given);
    Py_END_ALLOW_THREADS;
    return PyLong_FromLongLong(n_uncertain);
}

PyObject* py_accumulate(PyObject*, PyObject* args) {
    int set, is_double, n_threads;
    unsigned long long x, labels, rows, offsets, sums;
    long long n_rows, n_features, k;
    if (!PyArg_ParseTuple(args, "iiKKKKKLLLi", &set, &is_double, &x, &labels, &rows, &offsets,
                          &sums, &n_rows, &n_features, &k, &n_threads)) {
        return nullptr;
    }
    bool is_sorted;
    Py_BEGIN_ALLOW_THREADS;
    is_sorted = sort_by_label(at<int64_t>(labels), n_rows, k, at<int32_t>(rows),
                              at<int64_t>(offsets));
    if (is_sorted && is_double) {
        accumulate(instruction_sets[set].of_double,
                   AccumulateJob<double>{at<double>(x), at<int32_t>(rows), at<int64_t>(offsets),
                                         at<double>(sums), n_features, k},
                   n_threads);
    } else if (is_sorted) {
        accumulate(instruction_sets[set].of_float,
                   AccumulateJob<float>{at<float>(x), at<int32_t>(rows), at<int64_t>(offsets),
                                        at<float>(sums), n_features, k},
                   n_threads);
    }
    Py_END_ALLOW_THREADS;
    if (!is_sorted) {
        PyErr_Format(PyExc_ValueError, "labels must lie within 0 and %lld", k - 1);
        return nullptr;
    }
    Py_RETURN_NONE;
}

PyObject* py_sq_distances(PyObject*, PyObject* args) {
    int set, is_double, n_threads;
    unsigned long long x, labels, centroids, sq_distances;
    long long n_rows, n_features, k;
    if (!PyArg_ParseTuple(args, "iiKKKKLLLi", &set, &is_double, &x, &labels, &centroids,
                          &sq_distances, &n_rows, &n_features, &k, &n_threads)) {
        return nullptr;
    }
    const int64_t* each = at<int64_t>(labels);
    if (std::any_of(each, each + n_rows, [k](int64_t label) { return label < 0 || label >= k; })) {
        PyErr_Format(PyExc_IndexError, "labels must lie within 0 and %lld", k - 1);
        return nullptr;
    }
    Py_BEGIN_ALLOW_THREADS;
    if (is_double) {
        measure(instruction_sets[set].of_double,
                DistanceJob<double>{at<double>(x), each, at<double>(centroids),
                                    at<double>(sq_distances), n_rows, n_features},
                n_threads);
    } else {
        measure(instruction_sets[set].of_float,
                DistanceJob<float>{at<float>(x), each, at<float>(centroids),
                                   at<double>(sq_distances), n_rows, n_features},
                n_threads);
    }
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* py_move(PyObject*, PyObject* args) {
    int set, is_double, n_threads, spherical;
    unsigned long long sums, added, masses, touched, centroids, sq_steps;
    double unit;
    long long n_features, k;
    if (!PyArg_ParseTuple(args, "iiKKdKKKKLLpi", &set, &is_double, &sums, &added, &unit, &masses,
                          &touched, &centroids, &sq_steps, &k, &n_features, &spherical,
                          &n_threads)) {
        return nullptr;
    }
    double shift;
    Py_BEGIN_ALLOW_THREADS;
    if (is_double) {
        shift = move(instruction_sets[set].of_double,
                     MoveJob<double>{at<double>(sums), at<double>(added), unit, at<double>(masses),
                                     at<bool>(touched), at<double>(centroids), at<double>(sq_steps),
                                     n_features, spherical != 0},
                     k, n_threads);
    } else {
        shift = move(instruction_sets[set].of_float,
                     MoveJob<float>{at<double>(sums), at<float>(added), unit, at<double>(masses),
                                    at<bool>(touched), at<float>(centroids), at<double>(sq_steps),
                                    n_features, spherical != 0},
                     k, n_threads);
    }
    Py_END_ALLOW_THREADS;
    return PyFloat_FromDouble(shift);
}

PyObject* py_gather(PyObject*, PyObject* args) {
    int set, is_double, stored, n_threads;
    unsigned long long window, rows, shift, factor, x, sq_norms;
    long long n_window, n_rows, n_features;
    if (!PyArg_ParseTuple(args, "iiiKKKKKKLLLi", &set, &is_double, &stored, &window, &rows, &shift,
                          &factor, &x, &sq_norms, &n_window, &n_rows, &n_features, &n_threads)) {
        return nullptr;
    }
    const int32_t* positions = at<int32_t>(rows);
    uint32_t highest = 0;
    for (int64_t row = 0; rows != 0 && row < n_rows; ++row) {
        highest = std::max(highest, static_cast<uint32_t>(positions[row]));
    }
    if (n_rows > 0 && (rows == 0 ? n_rows > n_window : highest >= n_window)) {
        PyErr_Format(PyExc_IndexError, "rows must lie within a window of %lld", n_window);
        return nullptr;
    }
    Py_BEGIN_ALLOW_THREADS;
    if (is_double) {
        gather(instruction_sets[set].of_double, stored,
               GatherJob<double>{at<void>(window), positions, at<double>(shift),
                                 at<double>(factor), at<double>(x), at<double>(sq_norms), n_rows,
                                 n_features},
               n_threads);
    } else {
        gather(instruction_sets[set].of_float, stored,
               GatherJob<float>{at<void>(window), positions, at<float>(shift),
                                at<float>(factor), at<float>(x), at<float>(sq_norms), n_rows,
                                n_features},
               n_threads);
    }
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

#define STORED_NAME(name, Stored) name,
PyObject* py_stored_types(PyObject*, PyObject*) {
    const char* const names[] = {FOR_EACH_STORED_TYPE(STORED_NAME)};
    PyObject* list = PyList_New(0);
    for (const char* name : names) {
        PyObject* entry = list == nullptr ? nullptr : PyUnicode_FromString(name);
        if (entry == nullptr || PyList_Append(list, entry) < 0) Py_CLEAR(list);
        Py_XDECREF(entry);
    }
    return list;
}

PyObject* py_instruction_sets(PyObject*, PyObject*) {
    PyObject* names = PyList_New(0);
    if (names == nullptr) return nullptr;
    for (size_t i = 0; i < std::size(instruction_sets); ++i) {
        const InstructionSet& set = instruction_sets[i];
        if (!set.is_supported()) continue;
        PyObject* entry = Py_BuildValue("(siLL)", set.name, static_cast<int>(i),
                                        static_cast<long long>(set.of_float.panel_width),
                                        static_cast<long long>(set.of_double.panel_width));
        const bool failed = entry == nullptr || PyList_Append(names, entry) < 0;
        Py_XDECREF(entry);
        if (failed) {
            Py_DECREF(names);
            return nullptr;
        }
    }
    return names;
}

PyMethodDef methods[] = {
    {"assign", py_assign, METH_VARARGS, "Nearest centroids of rows, and how many were in doubt; see kernels/cpu.py."},
    {"accumulate", py_accumulate, METH_VARARGS, "Sums of rows by label; see kernels/cpu.py."},
    {"sq_distances", py_sq_distances, METH_VARARGS,
     "Distances of rows to the centroids of their labels; see kernels/distances.py."},
    {"gather", py_gather, METH_VARARGS, "Rows of a window as a batch; see kernels/gather.py."},
    {"move", py_move, METH_VARARGS, "Centroids follow the sums; see clustering/moving.py."},
    {"stored_types", py_stored_types, METH_NOARGS, "Names of the dtypes that gather knows."},
    {"instruction_sets", py_instruction_sets, METH_NOARGS,
     "(name, number, panel width for float32, for float64) of each that runs here, best first."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods,
                      nullptr,               nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&module); }
