// The module streamkm.kernels._cpu: the compiled arithmetic for the CPU.
//
// Its functions take addresses of arrays. The callers, in kernels/ops/, answer for dtype, shape
// and lifetime; only positions and labels are checked here. A function lets go of Python's lock
// and shares its work among the threads of a pool. No result depends on the number of threads.
// The same source is compiled for several instruction sets. Callers choose one by its number in
// `instruction_sets`.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <new>
#include <vector>

#include "breaths.h"
#include "carried.h"
#include "dispatch.h"
#include "reservoir.h"
#include "step.h"

namespace {

template <class T>
T* at(unsigned long long address) {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

// Whether every position lies within the window; without positions, whether n_rows rows do.
bool lie_within(const int32_t* positions, int64_t n_rows, int64_t n_window) {
    if (n_rows == 0) return true;
    if (positions == nullptr) return n_rows <= n_window;
    uint32_t highest = 0;
    for (int64_t row = 0; row < n_rows; ++row) {
        highest = std::max(highest, static_cast<uint32_t>(positions[row]));
    }
    // A negative position becomes 2^31 or more: a longer window must not let it pass.
    return highest < std::min(n_window, int64_t{1} << 31);
}

PyObject* refuse_window(int64_t n_window) {
    PyErr_Format(PyExc_IndexError, "rows must lie within a window of %lld",
                 static_cast<long long>(n_window));
    return nullptr;
}

bool are_labels(const int64_t* labels, int64_t n_rows, int64_t k) {
    return std::all_of(labels, labels + n_rows, [k](int64_t label) { return label >= 0 && label < k; });
}

PyObject* refuse_labels(int64_t k) {
    PyErr_Format(PyExc_IndexError, "labels must lie within 0 and %lld",
                 static_cast<long long>(k - 1));
    return nullptr;
}

struct AssignArguments {
    unsigned long long x, positions, sq_norms, centroids, packed, c_sq, labels, sq_distances,
        uncertain, second_sq_distances, dropped, zeros, exact;
    long long n_window, n_rows, n_features, k;
    double rounding, cancels, most_sq_norm;
    int rechecks, n_threads;
};

struct CompareArguments {
    AssignArguments rows;
    unsigned long long own, closest, weights, costs;
};

template <class T>
AssignJob<T> job_of(const AssignArguments& given) {
    AssignJob<T> job{};
    job.x = at<T>(given.x);
    job.positions = at<int32_t>(given.positions);
    job.sq_norms = at<T>(given.sq_norms);
    job.centroids = at<T>(given.centroids);
    job.packed = at<T>(given.packed);
    job.c_sq = at<T>(given.c_sq);
    job.labels = at<int64_t>(given.labels);
    job.sq_distances = at<T>(given.sq_distances);
    job.uncertain = at<bool>(given.uncertain);
    job.second_sq_distances = at<T>(given.second_sq_distances);
    job.dropped = at<bool>(given.dropped);
    job.zeros = at<T>(given.zeros);
    job.exact = at<double>(given.exact);
    job.n_rows = given.n_rows;
    job.n_features = given.n_features;
    job.k = given.k;
    job.rounding = static_cast<T>(given.rounding);
    job.cancels = static_cast<T>(given.cancels);
    job.most_sq_norm = static_cast<T>(given.most_sq_norm);
    return job;
}

template <class T>
int64_t assign_from(const InstructionSet& set, const AssignArguments& given) {
    AssignJob<T> job = job_of<T>(given);
    return assign(functions_of<T>(set), job, given.rechecks, given.n_threads);
}

PyObject* py_assign(PyObject*, PyObject* args) {
    int set, is_double;
    AssignArguments given{};
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKKKKKLLLLdddpi", &set, &is_double, &given.x,
                          &given.positions, &given.sq_norms, &given.centroids, &given.packed,
                          &given.c_sq, &given.labels, &given.sq_distances, &given.uncertain,
                          &given.second_sq_distances, &given.dropped, &given.zeros,
                          &given.exact, &given.n_window, &given.n_rows, &given.n_features, &given.k,
                          &given.rounding, &given.cancels, &given.most_sq_norm,
                          &given.rechecks, &given.n_threads)) {
        return nullptr;
    }
    if (!lie_within(at<int32_t>(given.positions), given.n_rows, given.n_window)) {
        return refuse_window(given.n_window);
    }
    long long n_uncertain = 0, n_dropped = 0;
    bool had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        n_uncertain = is_double ? assign_from<double>(instruction_sets[set], given)
                                : assign_from<float>(instruction_sets[set], given);
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    if (const bool* dropped = at<bool>(given.dropped); dropped != nullptr && had_room) {
        n_dropped = std::count(dropped, dropped + given.n_rows, true);
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    return Py_BuildValue("LL", n_uncertain, n_dropped);
}

struct CarriedArguments {
    AssignArguments rows;
    unsigned long long labels, lows, members, offsets, limits;
    long long n_steps, farthest;
    double next;
};

template <class T>
CarriedRows carried_from(const InstructionSet& set, const CarriedArguments& given) {
    CarriedJob<T> job{};
    job.rows = job_of<T>(given.rows);
    job.labels = at<int32_t>(given.labels);
    job.lows = at<float>(given.lows);
    job.drift = {at<int64_t>(given.members), at<int64_t>(given.offsets), at<double>(given.limits), given.n_steps,
                 given.farthest, given.next};
    return assign_carried(functions_of<T>(set), job, given.rows.n_threads);
}

PyObject* py_assign_carried(PyObject*, PyObject* args) {
    int set, is_double;
    CarriedArguments given{};
    AssignArguments& rows = given.rows;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKKKKKKKKKLLdLLLLdddi", &set, &is_double, &rows.x, &rows.positions,
                          &rows.sq_norms, &rows.centroids, &rows.packed, &rows.c_sq, &rows.labels,
                          &rows.sq_distances, &rows.uncertain, &rows.dropped, &rows.zeros, &rows.exact,
                          &given.labels, &given.lows, &given.members, &given.offsets, &given.limits,
                          &given.n_steps, &given.farthest, &given.next, &rows.n_window, &rows.n_rows,
                          &rows.n_features, &rows.k, &rows.rounding, &rows.cancels, &rows.most_sq_norm,
                          &rows.n_threads)) {
        return nullptr;
    }
    if (!lie_within(at<int32_t>(rows.positions), rows.n_rows, rows.n_window)) return refuse_window(rows.n_window);
    const int32_t* const before = at<int32_t>(given.labels);
    const int64_t* const members = at<int64_t>(given.members);
    const int64_t* const offsets = at<int64_t>(given.offsets);
    CarriedRows done;
    long long n_dropped = 0;
    bool had_room = true, are_right = true;
    Py_BEGIN_ALLOW_THREADS;
    if (given.limits != 0) {
        const auto is_label = [&rows](int64_t label) { return label >= 0 && label < rows.k; };
        are_right = std::all_of(before, before + rows.n_rows, is_label) &&
                    std::all_of(members, members + offsets[given.n_steps], is_label);
    }
    if (are_right) {
        try {
            done = is_double ? carried_from<double>(instruction_sets[set], given)
                             : carried_from<float>(instruction_sets[set], given);
            const bool* const dropped = at<bool>(rows.dropped);
            n_dropped = std::count(dropped, dropped + rows.n_rows, true);
        } catch (const std::bad_alloc&) {
            had_room = false;
        }
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    if (!are_right) return refuse_labels(rows.k);
    return Py_BuildValue("LLL", static_cast<long long>(done.n_uncertain), n_dropped,
                         static_cast<long long>(done.n_compared));
}

struct AddArguments {
    unsigned long long x, positions, labels, dropped, order, offsets, counts, epoch_counts, sums, grades;
    long long n_window, n_rows, n_features, k;
    double unit;
    int n_threads;
};

// Adds rows that have their labels to the sums of a pass.
template <class T>
void add_from(const InstructionSet& set, const AddArguments& given) {
    const bool* const dropped = at<bool>(given.dropped);
    const int64_t* labels = at<int64_t>(given.labels);
    std::vector<int64_t> counted;
    if (dropped != nullptr) {
        // Dropped rows are those of a cluster beyond the last, which is not added.
        counted.assign(labels, labels + given.n_rows);
        for (int64_t row = 0; row < given.n_rows; ++row) if (dropped[row]) counted[row] = given.k;
        labels = counted.data();
    }
    int64_t* const offsets = at<int64_t>(given.offsets);
    sort_by_label(labels, at<int32_t>(given.positions), given.n_rows, given.k + 1, at<int32_t>(given.order), offsets);
    for (int64_t cluster = 0; cluster < given.k; ++cluster) {
        at<int64_t>(given.counts)[cluster] += offsets[cluster + 1] - offsets[cluster];
        at<int64_t>(given.epoch_counts)[cluster] += offsets[cluster + 1] - offsets[cluster];
    }
    add_to_pass(set,
                AccumulateJob<T>{at<T>(given.x), nullptr, at<int32_t>(given.order), offsets, nullptr,
                                 given.n_features, given.k},
                GradedJob{nullptr, given.unit, at<int64_t>(given.sums), at<int64_t>(given.grades), given.k,
                          given.n_features},
                given.n_threads);
}

PyObject* py_add_to_pass(PyObject*, PyObject* args) {
    int set, is_double;
    AddArguments given{};
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKKLLLLdi", &set, &is_double, &given.x, &given.positions,
                          &given.labels, &given.dropped, &given.order, &given.offsets, &given.counts,
                          &given.epoch_counts, &given.sums, &given.grades, &given.n_window,
                          &given.n_rows, &given.n_features, &given.k, &given.unit, &given.n_threads)) {
        return nullptr;
    }
    if (!lie_within(at<int32_t>(given.positions), given.n_rows, given.n_window)) {
        return refuse_window(given.n_window);
    }
    bool had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        is_double ? add_from<double>(instruction_sets[set], given)
                  : add_from<float>(instruction_sets[set], given);
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

template <class T>
Grouped assign_by_heads_from(const InstructionSet& set, const AssignArguments& given, unsigned long long directions,
                             unsigned long long middle, int64_t n_directions, double skew) {
    HeadJob<T> job{};
    job.rows = job_of<T>(given);
    job.directions = at<float>(directions);
    job.middle = at<T>(middle);
    job.n_directions = n_directions;
    job.skew = skew;
    return assign_by_heads(functions_of<T>(set), job, given.rechecks, given.n_threads);
}

PyObject* py_assign_by_heads(PyObject*, PyObject* args) {
    int set, is_double;
    AssignArguments given{};
    unsigned long long directions, middle;
    long long n_directions;
    double skew;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKKKKKKLdLLLLdddpi", &set, &is_double, &given.x, &given.positions,
                          &given.sq_norms, &given.centroids, &given.packed, &given.c_sq, &directions, &middle,
                          &given.labels, &given.sq_distances, &given.uncertain, &given.dropped, &given.zeros,
                          &given.exact, &n_directions, &skew, &given.n_window, &given.n_rows, &given.n_features,
                          &given.k, &given.rounding, &given.cancels, &given.most_sq_norm, &given.rechecks,
                          &given.n_threads)) {
        return nullptr;
    }
    if (!lie_within(at<int32_t>(given.positions), given.n_rows, given.n_window)) {
        return refuse_window(given.n_window);
    }
    Grouped done;
    long long n_dropped = 0;
    bool had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        done = is_double ? assign_by_heads_from<double>(instruction_sets[set], given, directions, middle, n_directions, skew)
                         : assign_by_heads_from<float>(instruction_sets[set], given, directions, middle, n_directions, skew);
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    if (const bool* dropped = at<bool>(given.dropped); dropped != nullptr && had_room) {
        n_dropped = std::count(dropped, dropped + given.n_rows, true);
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    return Py_BuildValue("LLL", static_cast<long long>(done.n_uncertain), n_dropped,
                         static_cast<long long>(done.n_compared));
}

template <class T>
Grouped assign_grouped_from(const InstructionSet& set, const AssignArguments& given, const int32_t* order,
                            const int64_t* offsets, int64_t n_groups) {
    GroupedJob<T> job{};
    job.rows = job_of<T>(given);
    job.order = order;
    job.offsets = offsets;
    job.n_groups = n_groups;
    return assign_by_groups(functions_of<T>(set), job, given.rechecks, given.n_threads);
}

// Whether `order` has each of k centroids once, in groups that have one at least.
bool are_groups(const int32_t* order, const int64_t* offsets, int64_t n_groups, int64_t k) {
    if (n_groups < 1 || offsets[0] != 0 || offsets[n_groups] != k) return false;
    for (int64_t group = 0; group < n_groups; ++group) {
        if (offsets[group + 1] <= offsets[group]) return false;
    }
    std::vector<bool> is_there(k);
    for (int64_t i = 0; i < k; ++i) {
        if (order[i] < 0 || order[i] >= k || is_there[order[i]]) return false;
        is_there[order[i]] = true;
    }
    return true;
}

PyObject* py_assign_grouped(PyObject*, PyObject* args) {
    int set, is_double;
    AssignArguments given{};
    unsigned long long order, offsets;
    long long n_groups;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKKKKKKLLLLLdddpi", &set, &is_double, &given.x,
                          &given.positions, &given.sq_norms, &given.centroids, &given.packed,
                          &given.c_sq, &order, &offsets, &given.labels, &given.sq_distances, &given.uncertain,
                          &given.dropped, &given.zeros, &given.exact, &n_groups, &given.n_window, &given.n_rows,
                          &given.n_features, &given.k, &given.rounding, &given.cancels, &given.most_sq_norm,
                          &given.rechecks, &given.n_threads)) {
        return nullptr;
    }
    if (!lie_within(at<int32_t>(given.positions), given.n_rows, given.n_window)) {
        return refuse_window(given.n_window);
    }
    Grouped done;
    long long n_dropped = 0;
    bool had_room = true, are_right = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        const int32_t* const in_order = at<int32_t>(order);
        const int64_t* const from = at<int64_t>(offsets);
        are_right = are_groups(in_order, from, n_groups, given.k);
        if (are_right) {
            done = is_double ? assign_grouped_from<double>(instruction_sets[set], given, in_order, from, n_groups)
                             : assign_grouped_from<float>(instruction_sets[set], given, in_order, from, n_groups);
        }
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    if (const bool* dropped = at<bool>(given.dropped); dropped != nullptr && had_room && are_right) {
        n_dropped = std::count(dropped, dropped + given.n_rows, true);
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    if (!are_right) {
        PyErr_Format(PyExc_IndexError, "groups must have each of %lld centroids once, and none be empty", given.k);
        return nullptr;
    }
    return Py_BuildValue("LLL", static_cast<long long>(done.n_uncertain), n_dropped,
                         static_cast<long long>(done.n_compared));
}

// Whether each of `n_rows` rows is in one list, and each list that has rows has centroids of `k`.
bool are_lists(const Lists& lists, int64_t n_rows, int64_t k) {
    if (lists.starts[0] != 0 || lists.starts[lists.n] != n_rows || lists.offsets[0] != 0) return false;
    for (int64_t list = 0; list < lists.n; ++list) {
        const int64_t n = lists.starts[list + 1] - lists.starts[list];
        const int64_t n_members = lists.offsets[list + 1] - lists.offsets[list];
        if (n < 0 || n_members < 0 || (n > 0 && n_members == 0)) return false;
    }
    std::vector<bool> is_there(n_rows);
    for (int64_t i = 0; i < n_rows; ++i) {
        if (lists.order[i] < 0 || lists.order[i] >= n_rows || is_there[lists.order[i]]) return false;
        is_there[lists.order[i]] = true;
    }
    return std::all_of(lists.members, lists.members + lists.offsets[lists.n],
                       [k](int64_t member) { return member >= 0 && member < k; });
}

PyObject* py_assign_listed(PyObject*, PyObject* args) {
    int set, is_double;
    AssignArguments given{};
    unsigned long long order, starts, members, offsets;
    long long n_lists;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKLLLLddpi", &set, &is_double, &given.x, &given.sq_norms,
                          &given.centroids, &order, &starts, &members, &offsets, &given.labels,
                          &given.sq_distances, &n_lists, &given.n_rows, &given.n_features, &given.k,
                          &given.rounding, &given.cancels, &given.rechecks, &given.n_threads)) {
        return nullptr;
    }
    const Lists lists{at<int32_t>(order), at<int64_t>(starts), at<int64_t>(members), at<int64_t>(offsets), n_lists};
    long long n_uncertain = 0;
    bool had_room = true, are_right = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        const auto label = [&](const auto& functions, const auto& job) {
            return assign_by_lists(functions, job, lists, given.rechecks, given.n_threads);
        };
        are_right = are_lists(lists, given.n_rows, given.k);
        if (are_right) {
            n_uncertain = is_double ? label(instruction_sets[set].of_double, job_of<double>(given))
                                    : label(instruction_sets[set].of_float, job_of<float>(given));
        }
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    if (!are_right) {
        PyErr_Format(PyExc_IndexError, "each of %lld rows must be in one list of some of %lld centroids",
                     given.n_rows, given.k);
        return nullptr;
    }
    return PyLong_FromLongLong(n_uncertain);
}

template <class T>
void compare_from(const InstructionSet& set, const CompareArguments& given) {
    CompareJob<T> job{job_of<T>(given.rows), at<int64_t>(given.own), at<T>(given.closest),
                      at<double>(given.weights), at<double>(given.costs)};
    compare(functions_of<T>(set), job, given.rows.n_threads);
}

PyObject* py_compare(PyObject*, PyObject* args) {
    int set, is_double;
    CompareArguments given{};
    AssignArguments& rows = given.rows;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKKLLLdi", &set, &is_double, &rows.x, &rows.sq_norms,
                          &rows.centroids, &rows.packed, &rows.c_sq, &rows.sq_distances,
                          &given.own, &given.closest, &given.weights, &given.costs, &rows.n_rows,
                          &rows.n_features, &rows.k, &rows.cancels, &rows.n_threads)) {
        return nullptr;
    }
    Py_BEGIN_ALLOW_THREADS;
    if (is_double) {
        compare_from<double>(instruction_sets[set], given);
    } else {
        compare_from<float>(instruction_sets[set], given);
    }
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* py_accumulate(PyObject*, PyObject* args) {
    int set, is_double, n_threads;
    unsigned long long x, positions, shares, labels, rows, offsets, counts, sums;
    long long n_window, n_rows, n_features, k;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKLLLLi", &set, &is_double, &x, &positions, &shares, &labels,
                          &rows, &offsets, &counts, &sums, &n_window, &n_rows, &n_features, &k,
                          &n_threads)) {
        return nullptr;
    }
    if (!lie_within(at<int32_t>(positions), n_rows, n_window)) return refuse_window(n_window);
    bool is_sorted;
    Py_BEGIN_ALLOW_THREADS;
    is_sorted = sort_by_label(at<int64_t>(labels), at<int32_t>(positions), n_rows, k,
                              at<int32_t>(rows), at<int64_t>(offsets));
    for (int64_t cluster = 0; is_sorted && cluster < k; ++cluster) {
        at<int64_t>(counts)[cluster] += at<int64_t>(offsets)[cluster + 1] - at<int64_t>(offsets)[cluster];
    }
    if (is_sorted && is_double) {
        accumulate(AccumulateJob<double>{at<double>(x), at<double>(shares), at<int32_t>(rows),
                                         at<int64_t>(offsets), at<double>(sums), n_features, k},
                   n_threads, instruction_sets[set].of_double.accumulate_cluster);
    } else if (is_sorted) {
        accumulate(AccumulateJob<float>{at<float>(x), at<double>(shares), at<int32_t>(rows),
                                        at<int64_t>(offsets), at<double>(sums), n_features, k},
                   n_threads, instruction_sets[set].of_float.accumulate_cluster);
    }
    Py_END_ALLOW_THREADS;
    if (!is_sorted) {
        PyErr_Format(PyExc_ValueError, "labels must lie within 0 and %lld", k - 1);
        return nullptr;
    }
    Py_RETURN_NONE;
}

template <class T>
bool accumulate_fixed(const FixedJob<T>& job, const Functions<T>& functions, const T* sq_distances,
                      const int64_t* labels, const int32_t* positions, int32_t* rows, int64_t* offsets,
                      int64_t n_rows, int64_t* counts, int64_t* total, int n_threads) {
    if (!sort_by_label(labels, positions, n_rows, job.k, rows, offsets)) return false;
    for (int64_t cluster = 0; cluster < job.k; ++cluster) {
        counts[cluster] += offsets[cluster + 1] - offsets[cluster];
    }
    accumulate(job, n_threads, functions.fix_cluster);
    *total += functions.fixed_total(sq_distances, job.shares, n_rows, job.scale(job.k));
    return true;
}

PyObject* py_accumulate_fixed(PyObject*, PyObject* args) {
    int set, is_double, n_bits, n_threads;
    unsigned long long x, positions, shares, sq_distances, labels, exponents, rows, offsets, counts, sums,
        total;
    long long n_window, n_rows, n_features, k;
    if (!PyArg_ParseTuple(args, "iiKKKKKKiKKKKKLLLLi", &set, &is_double, &x, &positions, &shares,
                          &sq_distances, &labels, &exponents, &n_bits, &rows, &offsets, &counts, &sums,
                          &total, &n_window, &n_rows, &n_features, &k, &n_threads)) {
        return nullptr;
    }
    if (!lie_within(at<int32_t>(positions), n_rows, n_window)) return refuse_window(n_window);
    const auto add = [&](auto example, const auto& functions) {
        using T = decltype(example);
        const FixedJob<T> job{at<T>(x),          at<double>(shares), at<int32_t>(rows), at<int64_t>(offsets),
                              at<int32_t>(exponents), n_bits,        at<int64_t>(sums), n_window, n_features, k};
        return accumulate_fixed(job, functions, at<T>(sq_distances), at<int64_t>(labels),
                                at<int32_t>(positions), at<int32_t>(rows), at<int64_t>(offsets), n_rows,
                                at<int64_t>(counts), at<int64_t>(total), n_threads);
    };
    bool is_sorted;
    Py_BEGIN_ALLOW_THREADS;
    is_sorted = is_double ? add(double{}, instruction_sets[set].of_double)
                          : add(float{}, instruction_sets[set].of_float);
    Py_END_ALLOW_THREADS;
    if (!is_sorted) return refuse_labels(k);
    Py_RETURN_NONE;
}

PyObject* py_exponents(PyObject*, PyObject* args) {
    int is_double, least;
    unsigned long long labels, sq_norms, sq_distances, shares, exponents;
    long long n_rows, k;
    if (!PyArg_ParseTuple(args, "iKKKKKLLi", &is_double, &labels, &sq_norms, &sq_distances, &shares,
                          &exponents, &n_rows, &k, &least)) {
        return nullptr;
    }
    if (!are_labels(at<int64_t>(labels), n_rows, k)) return refuse_labels(k);
    Py_BEGIN_ALLOW_THREADS;
    const auto take = [&](auto example) {
        using T = decltype(example);
        take_exponents(at<int64_t>(labels), at<T>(sq_norms), at<T>(sq_distances), at<double>(shares), n_rows,
                       k, least, at<int32_t>(exponents));
    };
    is_double ? take(double{}) : take(float{});
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* py_add_graded(PyObject*, PyObject* args) {
    int set, n_threads;
    double unit;
    unsigned long long added, sums, grades;
    long long k, n_features;
    if (!PyArg_ParseTuple(args, "iKdKKLLi", &set, &added, &unit, &sums, &grades, &k, &n_features,
                          &n_threads)) {
        return nullptr;
    }
    Py_BEGIN_ALLOW_THREADS;
    add_graded(instruction_sets[set].of_any,
               GradedJob{at<double>(added), unit, at<int64_t>(sums), at<int64_t>(grades), k, n_features},
               n_threads);
    Py_END_ALLOW_THREADS;
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
    if (!are_labels(each, n_rows, k)) return refuse_labels(k);
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
    unsigned long long sums, kept, added, masses, touched, centroids, sq_steps, gains;
    double unit;
    long long n_features, k;
    if (!PyArg_ParseTuple(args, "iiKKKdKKKKKLLpi", &set, &is_double, &sums, &kept, &added, &unit, &masses,
                          &touched, &centroids, &sq_steps, &gains, &k, &n_features, &spherical,
                          &n_threads)) {
        return nullptr;
    }
    double shift;
    Py_BEGIN_ALLOW_THREADS;
    if (is_double) {
        shift = move(instruction_sets[set].of_double,
                     MoveJob<double>{at<double>(sums), at<double>(kept), at<double>(added), unit, at<double>(masses),
                                     at<bool>(touched), at<double>(centroids), at<double>(sq_steps),
                                     at<double>(gains), n_features, spherical != 0},
                     k, n_threads);
    } else {
        shift = move(instruction_sets[set].of_float,
                     MoveJob<float>{at<double>(sums), at<double>(kept), at<double>(added), unit, at<double>(masses),
                                    at<bool>(touched), at<float>(centroids), at<double>(sq_steps),
                                    at<double>(gains), n_features, spherical != 0},
                     k, n_threads);
    }
    Py_END_ALLOW_THREADS;
    return PyFloat_FromDouble(shift);
}

PyObject* py_expect(PyObject*, PyObject* args) {
    int is_double;
    unsigned long long labels, sq_norms, sq_distances, sq_norms_of_centroids, exponents;
    long long n_rows, k;
    Reach reach;
    if (!PyArg_ParseTuple(args, "iKKKKKLLddd", &is_double, &labels, &sq_norms, &sq_distances,
                          &sq_norms_of_centroids, &exponents, &n_rows, &k, &reach.reach, &reach.least_share,
                          &reach.most_share)) {
        return nullptr;
    }
    if (!are_labels(at<int64_t>(labels), n_rows, k + 1)) return refuse_labels(k + 1);
    long long n_misfits = 0;
    bool had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    const auto count = [&](auto example) {
        using T = decltype(example);
        expect_exponents(at<T>(sq_norms_of_centroids), k, reach, at<int32_t>(exponents));
        n_misfits = count_misfits(at<int64_t>(labels), at<T>(sq_norms), at<T>(sq_distances), n_rows, k, reach,
                                  at<int32_t>(exponents));
    };
    try {
        is_double ? count(double{}) : count(float{});
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    Py_END_ALLOW_THREADS;
    return had_room ? PyLong_FromLongLong(n_misfits) : PyErr_NoMemory();
}

PyObject* py_finish_step(PyObject*, PyObject* args) {
    int set, is_double, n_bits, spherical, n_threads;
    unsigned long long centroids, state_sums, mass, state_counts, epoch_counts, inertia, batch_inertia, shift,
        smoothed, best, no_improvement, n_steps, n_dropped, stop, tolerance, sums, exponents, counts, ahead;
    long long n_limbs, count_bytes, patience, by_tol, by_no_improvement, k, n_features;
    double memory, n_all;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKKKKKKKKKKKLLiddLLLpLLi", &set, &is_double, &centroids, &state_sums,
                          &mass, &state_counts, &epoch_counts, &inertia, &batch_inertia, &shift, &smoothed, &best,
                          &no_improvement, &n_steps, &n_dropped, &tolerance, &stop, &sums, &exponents, &counts,
                          &ahead, &n_limbs, &count_bytes, &n_bits, &memory, &n_all, &patience, &by_tol,
                          &by_no_improvement, &spherical, &k, &n_features, &n_threads)) {
        return nullptr;
    }
    const BatchAdded added{at<int64_t>(sums), at<int32_t>(exponents), at<void>(counts), at<int64_t>(ahead),
                           n_limbs, count_bytes, n_bits};
    const RulesOfStep rules{memory, n_all, patience, by_tol, by_no_improvement, spherical != 0};
    bool had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    const auto finish = [&](auto example, const auto& functions) {
        using T = decltype(example);
        const StateOfStep<T> state{
            at<T>(centroids), at<double>(state_sums), at<double>(mass), at<int64_t>(state_counts),
            at<int64_t>(epoch_counts), at<double>(inertia), at<double>(batch_inertia), at<double>(shift),
            at<double>(smoothed), at<double>(best), at<int64_t>(no_improvement), at<int64_t>(n_steps),
            at<int64_t>(n_dropped), at<int64_t>(stop), at<double>(tolerance)};
        finish_step(functions, state, added, rules, k, n_features, n_threads);
    };
    try {
        is_double ? finish(double{}, instruction_sets[set].of_double)
                  : finish(float{}, instruction_sets[set].of_float);
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    Py_RETURN_NONE;
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
    if (!lie_within(positions, n_rows, n_window)) return refuse_window(n_window);
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

struct OfferArguments {
    unsigned long long uniform, sq_distances, labels, sq_norms, weights, positions, x, rows, keys,
        row_labels, row_weights;
    double rounding;
    long long first, stride, n_offered, n_window, n_features, n_reservoir;
    int is_normalized;
};

template <class T>
bool offer_from(const OfferArguments& given) {
    return offer(OfferJob<T>{
        at<double>(given.uniform), at<double>(given.sq_distances), at<int64_t>(given.labels),
        at<T>(given.sq_norms), at<double>(given.weights), at<int32_t>(given.positions),
        at<T>(given.x), at<T>(given.rows), at<double>(given.keys), at<int64_t>(given.row_labels),
        at<double>(given.row_weights), given.rounding, given.first, given.stride, given.n_offered,
        given.n_window, given.n_features, given.n_reservoir,
        given.is_normalized != 0});
}

PyObject* py_offer(PyObject*, PyObject* args) {
    int is_double;
    OfferArguments given{};
    if (!PyArg_ParseTuple(args, "iKKKKKKKKKKKdLLLLLLp", &is_double, &given.uniform,
                          &given.sq_distances, &given.labels, &given.sq_norms, &given.weights,
                          &given.positions, &given.x, &given.rows, &given.keys, &given.row_labels,
                          &given.row_weights, &given.rounding, &given.first, &given.stride,
                          &given.n_offered, &given.n_window, &given.n_features,
                          &given.n_reservoir, &given.is_normalized)) {
        return nullptr;
    }
    bool lies_within = true, had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        lies_within = is_double ? offer_from<double>(given) : offer_from<float>(given);
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    if (!lies_within) return refuse_window(given.n_window);
    Py_RETURN_NONE;
}

PyObject* py_moments(PyObject*, PyObject* args) {
    int set, stored, n_threads;
    unsigned long long x, weights, counted, moments;
    long long n_rows, n_features;
    if (!PyArg_ParseTuple(args, "iiKKKKLLi", &set, &stored, &x, &weights, &counted, &moments,
                          &n_rows, &n_features, &n_threads)) {
        return nullptr;
    }
    bool had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        take_moments(instruction_sets[set].of_any, stored,
                     MomentsJob{at<void>(x), at<double>(weights), at<double>(counted), n_rows, n_features},
                     Moments(at<double>(moments), n_features), n_threads);
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

struct PassesArguments {
    AssignArguments rows;
    unsigned long long shares, weights, masses, after, gains;
    double unit;
    long long n_passes;
    double cost_before = 0, least_share = -1;
    int exact, spherical, n_threads_to_add, n_threads_to_move;
};

struct BreathsArguments {
    PassesArguments passes;
    unsigned long long labels, sq_distances, uniform;
    long long size, n_passes_in, step, most_around, n_breaths, stride, n_refused, tried, patience;
    double slack, settled, blur, cost, least_share, shrunk;
};

template <class T>
PassesJob<T> job_of(const PassesArguments& given) {
    return {job_of<T>(given.rows), at<double>(given.shares), at<double>(given.weights), given.unit,
            at<double>(given.masses), at<T>(given.after), at<double>(given.gains), given.n_passes,
            given.cost_before, given.least_share, given.exact != 0, given.rows.rechecks != 0, given.spherical != 0, given.rows.n_threads,
            given.n_threads_to_add, given.n_threads_to_move};
}

PyObject* py_passes(PyObject*, PyObject* args) {
    int set, is_double;
    PassesArguments passes{};
    AssignArguments& rows = passes.rows;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKKKKdLLLLddpppiiidd", &set, &is_double, &rows.x,
                          &rows.sq_norms, &passes.shares, &passes.weights, &rows.packed, &rows.c_sq,
                          &rows.centroids, &rows.labels, &rows.sq_distances, &passes.masses,
                          &passes.after, &passes.gains, &passes.unit, &passes.n_passes,
                          &rows.n_rows, &rows.n_features, &rows.k, &rows.rounding, &rows.cancels,
                          &passes.exact, &rows.rechecks, &passes.spherical, &rows.n_threads,
                          &passes.n_threads_to_add, &passes.n_threads_to_move, &passes.cost_before,
                          &passes.least_share)) {
        return nullptr;
    }
    PassedOver found;
    bool had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        found = is_double ? make_passes(functions_of<double>(instruction_sets[set]), job_of<double>(passes))
                          : make_passes(functions_of<float>(instruction_sets[set]), job_of<float>(passes));
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    return Py_BuildValue("LLii", static_cast<long long>(found.n_made),
                         static_cast<long long>(found.n_uncertain), int{found.is_full},
                         int{found.is_worth_it});
}

template <class T>
Breathed breathe_from(const InstructionSet& set, const BreathsArguments& given) {
    BreathJob<T> first{};
    first.passes = job_of<T>(given.passes);
    first.uniform_of_rows = at<double>(given.uniform);
    first.size = given.size;
    first.n_passes_in = given.n_passes_in;
    first.step = given.step;
    first.most_around = given.most_around;
    first.slack = given.slack;
    first.settled = given.settled;
    first.blur = given.blur;
    return breathe_on(functions_of<T>(set),
                      BreathsJob<T>{first, given.n_breaths, given.stride, given.cost,
                                    given.least_share, given.shrunk, given.n_refused, given.tried,
                                    given.patience, at<int64_t>(given.labels),
                                    at<T>(given.sq_distances), at<T>(given.passes.rows.centroids)});
}

PyObject* py_breaths(PyObject*, PyObject* args) {
    int set, is_double;
    BreathsArguments given{};
    PassesArguments& passes = given.passes;
    AssignArguments& rows = passes.rows;
    if (!PyArg_ParseTuple(args, "iiKKKKKKKKKKKdLLLddpiiiLLLLdLLLLddLdddL", &set, &is_double, &rows.x,
                          &rows.sq_norms, &passes.shares, &passes.weights, &rows.packed, &rows.c_sq,
                          &rows.centroids, &given.labels, &given.sq_distances, &passes.gains,
                          &given.uniform, &passes.unit, &rows.n_rows, &rows.n_features, &rows.k,
                          &rows.rounding, &rows.cancels, &rows.rechecks, &rows.n_threads,
                          &passes.n_threads_to_add, &passes.n_threads_to_move, &given.n_breaths,
                          &given.stride, &given.size, &given.n_refused, &given.cost,
                          &given.n_passes_in, &passes.n_passes, &given.step, &given.most_around,
                          &given.slack, &given.settled, &given.tried, &given.blur,
                          &given.least_share, &given.shrunk, &given.patience)) {
        return nullptr;
    }
    passes.exact = 1;
    if (!are_labels(at<int64_t>(given.labels), rows.n_rows, rows.k)) return refuse_labels(rows.k);
    Breathed found;
    bool had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        found = is_double ? breathe_from<double>(instruction_sets[set], given)
                          : breathe_from<float>(instruction_sets[set], given);
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    return Py_BuildValue("LLLLi", static_cast<long long>(found.n_taken),
                         static_cast<long long>(found.size), static_cast<long long>(found.n_refused),
                         static_cast<long long>(found.n_uncertain), int{found.is_kept});
}

struct ChooseArguments {
    CompareArguments rows;
    unsigned long long closest, left, uniform;
    long long n_trials;
    double most_steps;
    int is_first;
};

template <class T>
int64_t choose_from(const InstructionSet& set, const ChooseArguments& given) {
    ChooseJob<T> job{};
    static_cast<AssignJob<T>&>(job.rows) = job_of<T>(given.rows.rows);
    job.rows.weights = at<double>(given.rows.weights);
    job.closest = at<T>(given.closest);
    job.left = at<double>(given.left);
    job.uniform = at<double>(given.uniform);
    job.n_trials = given.n_trials;
    job.most_steps = given.most_steps;
    job.is_first = given.is_first != 0;
    return choose(functions_of<T>(set), job, given.rows.rows.n_threads);
}

PyObject* py_choose(PyObject*, PyObject* args) {
    int set, is_double;
    ChooseArguments given{};
    AssignArguments& rows = given.rows.rows;
    if (!PyArg_ParseTuple(args, "iiKKKKKKLLLddpi", &set, &is_double, &rows.x, &rows.sq_norms,
                          &given.rows.weights, &given.closest, &given.left, &given.uniform,
                          &rows.n_rows, &rows.n_features, &given.n_trials, &given.most_steps,
                          &rows.cancels, &given.is_first, &rows.n_threads)) {
        return nullptr;
    }
    int64_t chosen = 0;
    bool had_room = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        chosen = is_double ? choose_from<double>(instruction_sets[set], given)
                           : choose_from<float>(instruction_sets[set], given);
    } catch (const std::bad_alloc&) {
        had_room = false;
    }
    Py_END_ALLOW_THREADS;
    if (!had_room) return PyErr_NoMemory();
    return PyLong_FromLongLong(chosen);
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
        PyObject* entry = Py_BuildValue("(siLLLL)", set.name, static_cast<int>(i),
                                        static_cast<long long>(set.of_float.panel_width),
                                        static_cast<long long>(set.of_double.panel_width),
                                        static_cast<long long>(set.of_float.bytes.panel_width),
                                        static_cast<long long>(set.of_float.bytes.bits));
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
    {"assign", py_assign, METH_VARARGS, "Nearest centroids of rows, how many were in doubt, how many dropped; see kernels/ops/tiles.py."},
    {"assign_grouped", py_assign_grouped, METH_VARARGS,
     "The same by groups of centroids, and how many were compared; see kernels/ops/tiles.py."},
    {"assign_by_heads", py_assign_by_heads, METH_VARARGS,
     "The same by heads of rows and centroids, and how many were compared; see kernels/ops/tiles.py."},
    {"assign_listed", py_assign_listed, METH_VARARGS,
     "Nearest of some centroids for each row, how many were in doubt; see kernels/ops/lists.py."},
    {"assign_carried", py_assign_carried, METH_VARARGS,
     "Nearest centroids of rows of which a pass has found some: doubts, dropped, compared; see kernels/ops/carried.py."},
    {"add_to_pass", py_add_to_pass, METH_VARARGS,
     "Adds rows that have their labels to the sums of a pass; see kernels/ops/tiles.py."},
    {"compare", py_compare, METH_VARARGS, "Distances of rows to a few points; see kernels/ops/distances.py."},
    {"accumulate", py_accumulate, METH_VARARGS, "Sums of rows by label; see kernels/ops/tiles.py."},
    {"accumulate_fixed", py_accumulate_fixed, METH_VARARGS,
     "Sums of rows by label as integers; see kernels/ops/fixed.py."},
    {"exponents", py_exponents, METH_VARARGS,
     "Exponents of the longest rows by label; see kernels/ops/fixed.py."},
    {"add_graded", py_add_graded, METH_VARARGS, "Sums in whole numbers; see kernels/ops/graded.py."},
    {"sq_distances", py_sq_distances, METH_VARARGS,
     "Distances of rows to the centroids of their labels; see kernels/ops/distances.py."},
    {"gather", py_gather, METH_VARARGS, "Rows of a window as a batch; see kernels/ops/gather.py."},
    {"offer", py_offer, METH_VARARGS, "Rows that may fill empty clusters; see kernels/ops/offer.py."},
    {"moments", py_moments, METH_VARARGS, "Moments of features; see kernels/ops/moments.py."},
    {"expect", py_expect, METH_VARARGS,
     "Exponents of rows within reach of their centroids, and rows that they do not fit; see kernels/ops/step.py."},
    {"finish_step", py_finish_step, METH_VARARGS, "What the sums of a batch do to a state; see kernels/ops/step.py."},
    {"move", py_move, METH_VARARGS, "Centroids follow the sums; see kernels/ops/move.py."},
    {"passes", py_passes, METH_VARARGS,
     "Passes of Lloyd's algorithm: passes made, rows in doubt, whether each cluster has mass, whether another is worth it; see kernels/ops/passes.py."},
    {"breaths", py_breaths, METH_VARARGS,
     "Breaths: how many were taken, the size of the next, how many in a row were not kept, rows in doubt, whether any was kept; see kernels/ops/passes.py."},
    {"choose", py_choose, METH_VARARGS, "A step of greedy k-means++; see kernels/ops/choose.py."},
    {"stored_types", py_stored_types, METH_NOARGS, "Names of the dtypes that gather knows."},
    {"instruction_sets", py_instruction_sets, METH_NOARGS,
     "(name, number, panel width for float32, for float64, for bytes or 0, their bits) of each that runs here, best first."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods,
                      nullptr,               nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() {
    PyObject* const made = PyModule_Create(&module);
    if (made != nullptr && PyModule_AddIntConstant(made, "PART_ROWS", PART_ROWS) < 0) {
        Py_DECREF(made);
        return nullptr;
    }
    return made;
}
