// Compiles the arithmetic for several instruction sets, and shares a call's work among threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "jobs.h"
#include "pool.h"

#define INLINE inline __attribute__((always_inline))

#if defined(__clang__)
#define BEGIN_TARGET(features) \
    PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
// Clang keeps whole vectors without being told. It ignores a target if it does not know all of it.
#define WHOLE_VECTORS ""
#else
#define BEGIN_TARGET(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define END_TARGET PRAGMA(GCC pop_options)
#define WHOLE_VECTORS ",prefer-vector-width=512"
#endif
#define PRAGMA(text) _Pragma(#text)

// float16, widened by integer arithmetic, which compilers vectorise. Shifted into place, its bits
// are the value divided by 2^112. That holds for subnormal numbers too.
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
        // Infinity and NaN have every bit of the exponent set.
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

inline int64_t parts_of(int64_t n, int64_t part) { return (n + part - 1) / part; }

#if defined(__x86_64__)

BEGIN_TARGET("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c" WHOLE_VECTORS)
namespace avx512 {
#define VECTOR_BYTES 64
#define TILE_ROWS 12
#include "tiles.h"
#include "columns.h"
#include "assign.h"
#include "compare.h"
#include "rows.h"
#include "moments.h"
#undef VECTOR_BYTES
#undef TILE_ROWS
}  // namespace avx512
END_TARGET

BEGIN_TARGET("avx512f,avx512vl,avx512dq,avx512bw,avx512vnni,avx2,fma,f16c" WHOLE_VECTORS)
namespace avx512_vnni {
using namespace avx512;
#define VECTOR_BYTES 64
#define TILE_ROWS 12
#define PER_WORD 4
#include "bytes.h"
#include "heads.h"
#include "groups.h"
#undef VECTOR_BYTES
#undef TILE_ROWS
#undef PER_WORD
}  // namespace avx512_vnni
END_TARGET

BEGIN_TARGET("avx2,fma,f16c")
namespace avx2 {
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#include "tiles.h"
#include "columns.h"
#include "assign.h"
#include "compare.h"
#include "rows.h"
#include "moments.h"
#undef VECTOR_BYTES
#undef TILE_ROWS
}  // namespace avx2
END_TARGET

BEGIN_TARGET("avx2,fma,f16c")
namespace avx2_words {
using namespace avx2;
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#define PER_WORD 2
#include "bytes.h"
#include "heads.h"
#include "groups.h"
#undef VECTOR_BYTES
#undef TILE_ROWS
#undef PER_WORD
}  // namespace avx2_words
END_TARGET

BEGIN_TARGET("avx2,fma,f16c")
namespace avx2_bytes {
using namespace avx2;
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#define PER_WORD 4
#define SEGMENT_WORDS 16
#include "bytes.h"
#include "heads.h"
#undef VECTOR_BYTES
#undef TILE_ROWS
#undef PER_WORD
#undef SEGMENT_WORDS
}  // namespace avx2_bytes
END_TARGET

// Compilers that do not know the instructions (GCC before 11, Clang before 12) refuse their name.
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define HAS_AVX_VNNI 1
#endif

#if HAS_AVX_VNNI
BEGIN_TARGET("avxvnni,avx2,fma,f16c")
namespace avx_vnni {
using namespace avx2;
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#define PER_WORD 4
#include "bytes.h"
#include "heads.h"
#include "groups.h"
#undef VECTOR_BYTES
#undef TILE_ROWS
#undef PER_WORD
}  // namespace avx_vnni
END_TARGET
#endif

#endif

namespace baseline {
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#include "tiles.h"
#include "columns.h"
#include "assign.h"
#include "compare.h"
#include "rows.h"
#include "moments.h"
}  // namespace baseline

namespace {

// Every dtype that rows may be stored in, by torch's name.
#define FOR_EACH_STORED_TYPE(use)                                                     \
    use("float16", Float16)  use("bfloat16", BFloat16) use("float32", float)          \
    use("float64", double) use("uint8", uint8_t) use("int8", int8_t)                  \
    use("uint16", uint16_t) use("int16", int16_t) use("uint32", uint32_t)             \
    use("int32", int32_t) use("uint64", uint64_t) use("int64", int64_t)
constexpr int N_STORED_TYPES = 12;

// Screening in bytes, or in numbers of sixteen bits (bytes.h), by the sets that multiply them.
template <class T>
struct ByteFunctions {
    int64_t panel_width, bits;
    int64_t (*n_bytes)(int64_t k, int64_t n_features);
    int64_t (*block_rows)(int64_t n_features);
    void (*find_centre)(const AssignJob<T>&);
    bool (*pack)(const AssignJob<T>&, int64_t panel);
    int64_t (*assign_block)(const AssignJob<T>&, int64_t start, int64_t stop, int64_t& n_uncertain,
                            int64_t& n_compared);
    // By heads (heads.h).
    int64_t tile_rows;
    int64_t (*head_stride)(int64_t n_directions);
    int64_t (*head_bytes)(const HeadJob<T>&);
    void (*pack_directions)(const HeadJob<T>&);
    void (*project)(const HeadJob<T>&, int64_t tile);
    void (*find_head_centre)(const HeadJob<T>&);
    bool (*pack_heads)(const HeadJob<T>&, int64_t panel);
    int64_t (*assign_heads)(const HeadJob<T>&, int64_t start, int64_t stop, int64_t& n_uncertain, int64_t& n_compared);
    // By groups (groups.h).
    int64_t (*group_block_rows)(int64_t n_features);
    bool (*pack_group)(const GroupedJob<T>&, int64_t group);
    void (*pack_centres)(const GroupedJob<T>&, int64_t panel);
    void (*find_groups)(const GroupedJob<T>&, int64_t start, int64_t stop);
    int64_t (*assign_groups)(const GroupedJob<T>&, const AssignJob<T>& rows, const int32_t* groups, int64_t start,
                             int64_t stop, int64_t& n_uncertain, int64_t& n_compared);
};

// The functions of one instruction set, for one dtype.
template <class T>
struct Functions {
    int64_t panel_width, block_rows;
    void (*pack_panel)(const AssignJob<T>&, int64_t panel);
    int64_t (*assign_block)(const AssignJob<T>&, int64_t start, int64_t stop);
    void (*pack_points)(const CompareJob<T>&);
    void (*compare_block)(const CompareJob<T>&, int64_t start, int64_t stop, double* costs);
    void (*recheck_row)(const AssignJob<T>&, int64_t row);
    void (*correct_block)(const AssignJob<T>&, int64_t start, int64_t stop);
    void (*measure_block)(const AssignJob<T>&, int64_t start, int64_t stop);
    void (*know_block)(const AssignJob<T>&, int64_t start, int64_t stop);
    void (*accumulate_cluster)(const AccumulateJob<T>&, int64_t cluster, int64_t column,
                               int64_t stop);
    void (*fix_cluster)(const FixedJob<T>&, int64_t cluster, int64_t column, int64_t stop);
    int64_t (*fixed_total)(const T* sq_distances, const double* shares, int64_t n_rows, double scale);
    void (*measure_rows)(const DistanceJob<T>&, int64_t start, int64_t stop);
    void (*move_cluster)(const MoveJob<T>&, int64_t cluster);
    // Indexed by the number of the stored dtype.
    void (*gather_rows[N_STORED_TYPES])(const GatherJob<T>&, int64_t start, int64_t stop);
    ByteFunctions<T> bytes;  // nulls where the set has none
    ByteFunctions<T> fewer;  // the same in fewer bits, without groups; nulls where the set has none
};

#define HEAD_FUNCTIONS(T)                                                             \
    TILE_HEIGHT, head_stride, head_bytes<T>, pack_directions<T>, project_centroids<T>, find_head_centre<T>, \
        pack_heads<T>, assign_heads<T>
#define BYTE_FUNCTIONS(set, T)                                                        \
    []() -> ByteFunctions<T> {                                                        \
        using namespace set;                                                          \
        return {BYTE_PANEL, 8 * sizeof(Number), ByteCentroids<T>::n_bytes, byte_block_rows, \
                find_centre<T>, pack_bytes<T>, assign_bytes<T>, HEAD_FUNCTIONS(T), \
                group_block_rows, pack_group<T>, pack_centres<T>, find_groups<T>,     \
                assign_groups<T>};                                                    \
    }()

#define FEWER_BITS(set, T)                                                            \
    []() -> ByteFunctions<T> {                                                        \
        using namespace set;                                                          \
        return {BYTE_PANEL, 8 * sizeof(Number), ByteCentroids<T>::n_bytes, byte_block_rows, \
                find_centre<T>, pack_bytes<T>, assign_bytes<T>, HEAD_FUNCTIONS(T), nullptr, \
                nullptr, nullptr, nullptr, nullptr};                                  \
    }()

#define GATHER_ROWS(name, Stored) gather_rows<Stored, Element>,
#define FUNCTIONS(set, T, bytes, fewer)                                                             \
    []() -> Functions<T> {                                                            \
        using namespace set;                                                          \
        using Element = T;                                                            \
        return {panel_width<T>(),     BLOCK_ROWS,       pack_panel<T>,    assign_block<T>,     \
                pack_points<T>,       compare_block<T>, recheck_row<T>,   correct_block<T>,    \
                measure_block<T>,      know_block<T>,   accumulate_cluster<T>, fix_cluster<T>,   fixed_total<T>, \
                measure_rows<T>,       move_cluster<T>, \
                {FOR_EACH_STORED_TYPE(GATHER_ROWS)}, bytes, fewer};                                   \
    }()

// The functions of one instruction set that compute in float64, whatever the rows are stored as.
struct AnyFunctions {
    int64_t (*strip_width)(int64_t n_features);
    // Indexed by the number of the stored dtype.
    void (*measure_part[N_STORED_TYPES])(const MomentsJob&, int64_t start, int64_t stop, const Moments&);
    void (*add_graded_row)(const GradedJob&, int64_t row);
};

#define MEASURE_PART(name, Stored) measure_part<Stored>,
#define ANY_FUNCTIONS(set)                                                         \
    []() -> AnyFunctions {                                                         \
        using namespace set;                                                          \
        return {strip_width, {FOR_EACH_STORED_TYPE(MEASURE_PART)}, add_graded_row};                   \
    }()

struct InstructionSet {
    const char* name;
    bool (*is_supported)();
    Functions<float> of_float;
    Functions<double> of_double;
    AnyFunctions of_any;
};

#define INSTRUCTION_SET(set) FUNCTIONS(set, float, {}, {}), FUNCTIONS(set, double, {}, {}), ANY_FUNCTIONS(set)
#define WITH_BYTES(set, bytes)                                                        \
    FUNCTIONS(set, float, BYTE_FUNCTIONS(bytes, float), {}),                          \
        FUNCTIONS(set, double, BYTE_FUNCTIONS(bytes, double), {}), ANY_FUNCTIONS(set)
#define WITH_FEWER(set, bytes, fewer)                                                 \
    FUNCTIONS(set, float, BYTE_FUNCTIONS(bytes, float), FEWER_BITS(fewer, float)),    \
        FUNCTIONS(set, double, BYTE_FUNCTIONS(bytes, double), FEWER_BITS(fewer, double)), ANY_FUNCTIONS(set)

#if defined(__x86_64__)
inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#if HAS_AVX_VNNI
// GCC 12 does not know the name: bit 4 of EAX of leaf 7, subleaf 1.
inline bool has_avx_vnni() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif
#endif

// Best first.
const InstructionSet instruction_sets[] = {
#if defined(__x86_64__)
    {"avx512_vnni", [] { return has_avx512() && __builtin_cpu_supports("avx512vnni"); },
     WITH_BYTES(avx512, avx512_vnni)},
    {"avx512", has_avx512, INSTRUCTION_SET(avx512)},
#if HAS_AVX_VNNI
    {"avx_vnni", [] { return has_avx2() && has_avx_vnni(); }, WITH_BYTES(avx2, avx_vnni)},
#endif
    {"avx2", has_avx2, WITH_FEWER(avx2, avx2_words, avx2_bytes)},
#endif
    {"baseline", [] { return true; }, INSTRUCTION_SET(baseline)},
};

template <class T>
const Functions<T>& functions_of(const InstructionSet& set) {
    if constexpr (std::is_same_v<T, float>) {
        return set.of_float;
    } else {
        return set.of_double;
    }
}

// Calls `work(start, stop)` for every part of the rows.
template <class Work>
void for_each_part(int64_t n_rows, int n_threads, const Work& work) {
    Pool::instance().run(parts_of(n_rows, PART_ROWS), n_threads, [&](int64_t part) {
        work(part * PART_ROWS, std::min((part + 1) * PART_ROWS, n_rows));
    });
}

// Centroids from which on the distances to report are sums of squared differences, whatever the
// instruction set: those that screen in bytes have no others, and all must have the same bits. Fewer
// centroids are not screened in bytes: turning rows into bytes would take longer than it saves.
constexpr int64_t MANY_CENTROIDS = 256;

// Labels all rows by scores in their own dtype. Returns how many screening left in doubt; with
// `rechecks`, these are exact too.
template <class T>
int64_t assign_by_scores(const Functions<T>& functions, AssignJob<T>& job, bool rechecks, int n_threads) {
    Pool& pool = Pool::instance();
    // Waking a thread takes longer than packing fewer numbers than this.
    constexpr int64_t FEW = 1 << 15;
    pool.run(parts_of(job.k, functions.panel_width), job.k * job.n_features < FEW ? 1 : n_threads,
             [&](int64_t panel) { functions.pack_panel(job, panel); });
    job.longest_sq = *std::max_element(job.c_sq, job.c_sq + job.k);
    std::atomic<int64_t> n_uncertain{0};
    pool.run(parts_of(job.n_rows, functions.block_rows), n_threads, [&](int64_t block) {
        const int64_t start = block * functions.block_rows;
        const int64_t stop = std::min(start + functions.block_rows, job.n_rows);
        const int64_t n_found = functions.assign_block(job, start, stop);
        n_uncertain += n_found;
        for (int64_t row = start; n_found > 0 && rechecks && row < stop; ++row) {
            if (job.uncertain[row]) functions.recheck_row(job, row);
        }
        if (job.exact || job.k >= MANY_CENTROIDS) {
            functions.measure_block(job, start, stop);
        } else {
            functions.correct_block(job, start, stop);
        }
    });
    return n_uncertain;
}

// Labels rows that screening left, by `assign_them`: `rows` are their numbers.
template <class T, class Assign>
int64_t assign_rest(const AssignJob<T>& job, const std::vector<int64_t>& rows, const Assign& assign_them) {
    const int64_t n = static_cast<int64_t>(rows.size());
    std::vector<int32_t> positions(n);
    std::vector<T> sq_norms(n), sq_distances(n);
    std::vector<int64_t> labels(n);
    std::vector<double> exact(job.exact ? n : 0);
    std::vector<float> lows(job.lows ? n : 0);
    const std::unique_ptr<bool[]> flags(new bool[2 * n]);
    AssignJob<T> rest = job;
    rest.positions = positions.data();
    rest.sq_norms = sq_norms.data();
    rest.labels = labels.data();
    rest.sq_distances = sq_distances.data();
    rest.uncertain = flags.get();
    rest.dropped = job.dropped ? flags.get() + n : nullptr;
    rest.exact = job.exact ? exact.data() : nullptr;
    rest.lows = job.lows ? lows.data() : nullptr;
    rest.n_rows = n;
    for (int64_t i = 0; i < n; ++i) {
        positions[i] = job.positions ? job.positions[rows[i]] : static_cast<int32_t>(rows[i]);
        sq_norms[i] = job.sq_norms[rows[i]];
    }
    const int64_t n_uncertain = assign_them(rest);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t row = rows[i];
        job.sq_norms[row] = sq_norms[i];
        job.labels[row] = labels[i];
        job.sq_distances[row] = sq_distances[i];
        if (job.dropped) job.dropped[row] = rest.dropped[i];
        if (job.exact) job.exact[row] = exact[i];
        if (job.lows) job.lows[row] = lows[i];
    }
    return n_uncertain;
}

template <class T>
int64_t assign_rest(const Functions<T>& functions, const AssignJob<T>& job, const std::vector<int64_t>& rows,
                    bool rechecks, int n_threads) {
    return assign_rest(job, rows, [&](AssignJob<T>& rest) { return assign_by_scores(functions, rest, rechecks, n_threads); });
}

// Whether screening in bytes takes less time than it saves: three products of four, or one of two in
// numbers of sixteen bits, less the turning of a row into bytes and the comparison of what remains.
// (Measured on Zen 5 and Zen 3, in bench/LOG.md.)
template <class T>
bool saves_time(const ByteFunctions<T>& bytes, const AssignJob<T>& job) {
    constexpr double CYCLES_OF_ROW = 300, CYCLES_OF_FEATURE = 0.6;
    const double products = static_cast<double>(job.k) * job.n_features * sizeof(T) / sizeof(float);
    const double saved = 1 - static_cast<double>(bytes.bits) / 32;
    return products * saved / bytes.panel_width > CYCLES_OF_ROW + CYCLES_OF_FEATURE * job.n_features;
}

// Screens rows in whole numbers, block by block.
template <class T>
class Screening {
public:
    Screening(AssignJob<T>& rows, int64_t rows_of_block, int n) : job(rows), block_rows(rows_of_block), n_threads(n) {}

    // Whether screening in bytes takes less time than it saves: tries a few of the blocks that are left,
    // and screens the others if it does.
    bool run(const ByteFunctions<T>& bytes, bool rechecks) {
        const std::unique_ptr<uint8_t[]> room(new uint8_t[bytes.n_bytes(job.k, job.n_features)]);
        job.in_bytes = room.get();
        bytes.find_centre(job);
        return run(
            parts_of(job.k, bytes.panel_width), [&](int64_t panel) { return bytes.pack(job, panel); },
            [&](int64_t start, int64_t stop, int64_t& n_doubtful, int64_t& n_candidates) {
                return bytes.assign_block(job, start, stop, n_doubtful, n_candidates);
            },
            [&](int64_t n_left, int64_t n_screened) {
                // (Measured on Zen 3, in bench/LOG.md. A row that is left takes as many products in float32.)
                constexpr int64_t SHARE = 8;
                constexpr double SAVED = 0.4, OF_FLOATS = 2.4;
                if (rechecks && SHARE * n_left > n_screened) return true;
                return bytes.assign_groups == nullptr && compares_more_than(SAVED, 1, OF_FLOATS * n_left, n_screened);
            });
    }

    // The same by heads, whose centroids are projected.
    bool run(const ByteFunctions<T>& bytes, HeadJob<T>& heads) {
        const std::unique_ptr<uint8_t[]> room(new uint8_t[bytes.head_bytes(heads)]);
        heads.in_bytes = room.get();
        bytes.find_head_centre(heads);
        return run(
            parts_of(job.k, bytes.panel_width), [&](int64_t panel) { return bytes.pack_heads(heads, panel); },
            [&](int64_t start, int64_t stop, int64_t& n_doubtful, int64_t& n_candidates) {
                return bytes.assign_heads(heads, start, stop, n_doubtful, n_candidates);
            },
            [&](int64_t n_left, int64_t n_screened) {
                // Less is saved than is not multiplied: rows are turned. Rows that are left take all features.
                const double saved = 0.9 - static_cast<double>(heads.n_numbers()) / static_cast<double>(job.n_features);
                return compares_more_than(saved, bytes.assign_groups == nullptr ? 1 : 2, n_left, n_screened);
            });
    }

    // Whether nothing was screened, because a centroid is too long.
    bool is_unused() const { return n_tried == 0; }

    // The rows that are in doubt, or in no block that was screened.
    std::vector<int64_t> rest() const {
        std::vector<int64_t> numbers;
        for (int64_t row = 0; row < job.n_rows; ++row) {
            if (row / block_rows % TRIED >= n_tried) job.uncertain[row] = true;
            if (job.uncertain[row]) numbers.push_back(row);
        }
        return numbers;
    }

    std::atomic<int64_t> n_uncertain{0};  // rows that were compared with more than one centroid

private:
    static constexpr int64_t TRIED = 16;

    template <class Pack, class Screen, class InVain>
    bool run(int64_t n_panels, const Pack& pack, const Screen& screen_rows, const InVain& is_in_vain) {
        Pool& pool = Pool::instance();
        std::atomic<bool> fits{true};
        pool.run(n_panels, n_threads, [&](int64_t panel) {
            try_to([&] {
                if (!pack(panel)) fits = false;
            });
        });
        if (!had_room) throw std::bad_alloc();
        if (!fits) return false;
        // Where many rows are near many centroids, screening is in vain. A few blocks are tried first:
        // what is done about the others must not depend on who comes first.
        const int64_t n_blocks = parts_of(job.n_rows, block_rows), tried = n_tried++;
        std::atomic<int64_t> n_screened{0}, n_left{0};
        n_compared = 0;
        const auto screen = [&](int64_t block) {
            const int64_t start = block * block_rows, stop = std::min(start + block_rows, job.n_rows);
            int64_t n_doubtful = 0, n_candidates = 0;
            try_to([&] { n_left += screen_rows(start, stop, n_doubtful, n_candidates); });
            n_screened += stop - start;
            n_uncertain += n_doubtful;
            n_compared += n_candidates;
        };
        pool.run(parts_of(n_blocks - tried, TRIED), n_threads, [&](int64_t i) { screen(i * TRIED + tried); });
        // (Of a block without room nothing is filled, not even which rows are in doubt.)
        if (!had_room) throw std::bad_alloc();
        if (is_in_vain(n_left, n_screened)) return false;
        pool.run(n_blocks, n_threads, [&](int64_t block) {
            if (block % TRIED > tried) screen(block);
        });
        if (!had_room) throw std::bad_alloc();
        n_tried = TRIED;
        return true;
    }

    // Whether comparing what screening leaves takes as long as it saves, a share of comparing all; `left` are
    // rows that take as long as others without it. Products are made at a `pace`, in times that of Zen 3.
    bool compares_more_than(double saved, double pace, double left, int64_t n_screened) const {
        constexpr double PRODUCTS_OF_ONE = 9400, PRODUCTS_OF_FEATURE = 15;
        const double of_row = static_cast<double>(job.k) * job.n_features;
        const double of_candidate = pace * (PRODUCTS_OF_ONE + PRODUCTS_OF_FEATURE * job.n_features);
        return of_candidate * static_cast<double>(n_compared - n_screened) + of_row * left > saved * of_row * n_screened;
    }

    // (No error may leave a thread of the pool.)
    template <class Work>
    void try_to(const Work& work) {
        try {
            work();
        } catch (const std::bad_alloc&) {
            had_room = false;
        }
    }

    AssignJob<T>& job;
    const int64_t block_rows;
    const int n_threads;
    int64_t n_tried = 0;  // blocks that are screened of each TRIED
    std::atomic<int64_t> n_compared{0};  // comparisons that screening left
    std::atomic<bool> had_room{true};
};

// Labels all rows. Returns how many were compared with more than one centroid after screening.
template <class T>
int64_t assign(const Functions<T>& functions, AssignJob<T>& job, bool rechecks, int n_threads) {
    const ByteFunctions<T>& bytes = functions.bytes;
    // Sums of more products of bytes may not fit 32 bits.
    constexpr int64_t MOST_FEATURES = 1 << 16;
    // In a call of fewer rows it takes long to pack the centroids twice, should fewer bits be in vain.
    constexpr int64_t MANY_ROWS = 512;
    // (Where distances are exact anyway, fewer may be screened so: `saves_time` says when.)
    const int64_t least_k = job.lows ? 1 : MANY_CENTROIDS;
    if (bytes.assign_block == nullptr || job.k < least_k || job.n_features > MOST_FEATURES ||
        job.second_sq_distances || !saves_time(bytes, job)) {
        return assign_by_scores(functions, job, rechecks, n_threads);
    }
    Screening<T> screening(job, bytes.block_rows(job.n_features), n_threads);
    // (Fewer bits leave bounds that are of little use to the next pass.)
    const bool is_done = functions.fewer.assign_block != nullptr && job.n_rows >= MANY_ROWS && job.lows == nullptr &&
                         screening.run(functions.fewer, rechecks);
    if (!is_done) screening.run(bytes, rechecks);
    if (screening.is_unused()) return assign_by_scores(functions, job, rechecks, n_threads);
    const std::vector<int64_t> rest = screening.rest();
    if (rest.empty()) return screening.n_uncertain;
    return screening.n_uncertain + assign_rest(functions, job, rest, rechecks, n_threads);
}

// What a call by heads or by groups did.
struct Grouped {
    int64_t n_uncertain = 0;  // rows that were compared with more than one centroid after screening
    int64_t n_compared = 0;   // comparisons of rows with centroids
};

// Labels all rows, like `assign`, by heads, and by all features where it finds these in vain: then as many
// comparisons are told as there are rows and centroids. For a set that screens in bytes.
template <class T>
Grouped assign_by_heads(const Functions<T>& functions, HeadJob<T>& job, bool rechecks, int n_threads) {
    const ByteFunctions<T>& bytes = functions.fewer.assign_block != nullptr ? functions.fewer : functions.bytes;
    AssignJob<T>& rows = job.rows;
    const int64_t stride = bytes.head_stride(job.n_directions), n_all = rows.n_rows * rows.k;
    std::unique_ptr<float[]> packed(new float[stride * rows.n_features]), heads(new float[stride * rows.k]);
    std::unique_ptr<float[]> moves(new float[rows.k]);
    job.packed = packed.get();
    job.heads = heads.get();
    job.moves = moves.get();
    bytes.pack_directions(job);
    std::atomic<bool> had_room{true};
    Pool::instance().run(parts_of(rows.k, bytes.tile_rows), n_threads, [&](int64_t tile) {
        try {
            bytes.project(job, tile);
        } catch (const std::bad_alloc&) {
            had_room = false;
        }
    });
    if (!had_room) throw std::bad_alloc();
    Screening<T> screening(rows, functions.bytes.block_rows(rows.n_features), n_threads);
    const bool is_done = screening.run(bytes, job);
    for (auto* room : {&packed, &heads, &moves}) room->reset();
    if (!is_done) screening.run(functions.bytes, rechecks);
    if (screening.is_unused()) return {assign_by_scores(functions, rows, rechecks, n_threads), n_all};
    Grouped done{screening.n_uncertain, is_done ? n_all * job.n_numbers() / rows.n_features : n_all};
    const std::vector<int64_t> rest = screening.rest();
    if (rest.empty()) return done;
    done.n_uncertain += assign_rest(rows, rest, [&](AssignJob<T>& left) { return assign(functions, left, rechecks, n_threads); });
    return done;
}

// Labels all rows, like `assign`, by groups of centroids; for a set that screens in bytes.
template <class T>
Grouped assign_by_groups(const Functions<T>& functions, GroupedJob<T>& job, bool rechecks, int n_threads) {
    const ByteFunctions<T>& bytes = functions.bytes;
    AssignJob<T>& rows = job.rows;
    Pool& pool = Pool::instance();
    const int64_t n_rows = rows.n_rows, d = rows.n_features;
    std::vector<int64_t> panels(job.n_groups + 1);
    for (int64_t group = 0; group < job.n_groups; ++group) {
        panels[group + 1] = panels[group] + parts_of(job.offsets[group + 1] - job.offsets[group], bytes.panel_width);
    }
    job.panels = panels.data();
    const int64_t n_lanes = job.n_panels() * bytes.panel_width;
    const int64_t centre_panels = parts_of(job.n_groups, bytes.panel_width);
    const std::unique_ptr<int32_t[]> of_lanes(new int32_t[n_lanes]), of_rows(new int32_t[n_rows]);
    const std::unique_ptr<T[]> centres(new T[job.n_groups * d]);
    const std::unique_ptr<float[]> radii(new float[centre_panels * bytes.panel_width]);
    const std::unique_ptr<uint8_t[]> members(new uint8_t[bytes.n_bytes(n_lanes, d)]);
    const std::unique_ptr<uint8_t[]> centres_in_bytes(new uint8_t[bytes.n_bytes(job.n_groups, d)]);
    job.of_lanes = of_lanes.get();
    job.of_rows = of_rows.get();
    job.centres = centres.get();
    job.radii = radii.get();
    job.members = rows.in_bytes = members.get();
    job.centres_in_bytes = centres_in_bytes.get();
    // All are less the same point, which comes first in both rooms.
    bytes.find_centre(rows);
    std::memcpy(job.centres_in_bytes, job.members, d * sizeof(T));
    std::atomic<bool> fits{true}, had_room{true};
    const auto try_to = [&had_room](const auto& work) {
        try {
            work();
        } catch (const std::bad_alloc&) {
            had_room = false;
        }
    };
    pool.run(job.n_groups, n_threads, [&](int64_t group) {
        try_to([&] {
            if (!bytes.pack_group(job, group)) fits = false;
        });
    });
    pool.run(centre_panels, n_threads, [&](int64_t panel) { try_to([&] { bytes.pack_centres(job, panel); }); });
    if (!had_room) throw std::bad_alloc();
    if (!fits) return {assign(functions, rows, rechecks, n_threads), n_rows * rows.k};
    const int64_t block_rows = bytes.group_block_rows(d), n_blocks = parts_of(n_rows, block_rows);
    const auto for_each_block = [&](const auto& work) {
        pool.run(n_blocks, n_threads, [&](int64_t block) {
            try_to([&] { work(block * block_rows, std::min((block + 1) * block_rows, n_rows)); });
        });
        if (!had_room) throw std::bad_alloc();
    };
    for_each_block([&](int64_t start, int64_t stop) { bytes.find_groups(job, start, stop); });
    // Rows as `rows` has them, but sorted by group.
    std::vector<int64_t> starts(job.n_groups + 1);
    for (int64_t row = 0; row < n_rows; ++row) ++starts[of_rows[row] + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::vector<int32_t> numbers(n_rows), positions(n_rows), groups(n_rows);
    for (int64_t row = 0; row < n_rows; ++row) {
        const int64_t place = starts[of_rows[row]]++;
        numbers[place] = static_cast<int32_t>(row);
        positions[place] = rows.positions ? rows.positions[row] : static_cast<int32_t>(row);
        groups[place] = of_rows[row];
    }
    std::vector<T> sq_norms(rows.dropped ? n_rows : 0), sq_distances(n_rows);
    std::vector<int64_t> labels(n_rows), rest;
    std::vector<double> exact(rows.exact ? n_rows : 0);
    const std::unique_ptr<bool[]> uncertain(new bool[n_rows]), dropped(new bool[rows.dropped ? n_rows : 0]);
    AssignJob<T> sorted = rows;
    sorted.positions = positions.data();
    sorted.sq_norms = rows.dropped ? sq_norms.data() : nullptr;
    sorted.labels = labels.data();
    sorted.sq_distances = sq_distances.data();
    sorted.uncertain = uncertain.get();
    sorted.dropped = rows.dropped ? dropped.get() : nullptr;
    sorted.exact = rows.exact ? exact.data() : nullptr;
    std::atomic<int64_t> n_uncertain{0}, n_compared{n_rows * job.n_groups * 2};
    for_each_block([&](int64_t start, int64_t stop) {
        int64_t of_block = 0, compared = 0;
        bytes.assign_groups(job, sorted, groups.data(), start, stop, of_block, compared);
        n_uncertain += of_block;
        n_compared += compared;
    });
    for (int64_t place = 0; place < n_rows; ++place) {
        const int64_t row = numbers[place];
        rows.labels[row] = labels[place];
        rows.sq_distances[row] = sq_distances[place];
        rows.uncertain[row] = uncertain[place];
        if (rows.exact) rows.exact[row] = exact[place];
    }
    for (int64_t row = 0; row < n_rows; ++row) if (rows.uncertain[row]) rest.push_back(row);
    Grouped done{n_uncertain, n_compared};
    if (rest.empty()) return done;
    done.n_uncertain += assign_rest(functions, rows, rest, rechecks, n_threads);
    done.n_compared += static_cast<int64_t>(rest.size()) * rows.k;
    return done;
}

// Labels the rows of one list. Returns how many were in doubt.
template <class T>
int64_t assign_list(const Functions<T>& functions, const AssignJob<T>& job, const Lists& lists, int64_t list,
                    bool rechecks) {
    static thread_local std::vector<T> centroids, packed, c_sq, sq_norms, sq_distances;
    static thread_local std::vector<int64_t> labels;
    const int64_t first = lists.starts[list], n = lists.starts[list + 1] - first, d = job.n_features;
    const int64_t begin = lists.offsets[list], k = lists.offsets[list + 1] - begin;
    if (n == 0) return 0;
    const int64_t n_lanes = parts_of(k, functions.panel_width) * functions.panel_width;
    centroids.resize(k * d);
    packed.resize(n_lanes * d);
    c_sq.resize(n_lanes);
    for (auto* each : {&sq_norms, &sq_distances}) each->resize(n);
    labels.resize(n);
    for (int64_t i = 0; i < k; ++i) {
        std::copy_n(job.centroids + lists.members[begin + i] * d, d, centroids.data() + i * d);
    }
    const int32_t* const rows = lists.order + first;
    for (int64_t i = 0; i < n; ++i) sq_norms[i] = job.sq_norms[rows[i]];
    const std::unique_ptr<bool[]> uncertain(new bool[n]);
    AssignJob<T> own = job;
    own.positions = rows;
    own.centroids = centroids.data();
    own.packed = packed.data();
    own.c_sq = c_sq.data();
    own.sq_norms = sq_norms.data();
    own.sq_distances = sq_distances.data();
    own.labels = labels.data();
    own.uncertain = uncertain.get();
    own.n_rows = n;
    own.k = k;
    const int64_t n_uncertain = assign(functions, own, rechecks, 1);
    for (int64_t i = 0; i < n; ++i) {
        job.labels[rows[i]] = lists.members[begin + labels[i]];
        job.sq_distances[rows[i]] = sq_distances[i];
    }
    return n_uncertain;
}

// Labels rows by lists of centroids, each list by one thread. Returns how many rows were in doubt.
template <class T>
int64_t assign_by_lists(const Functions<T>& functions, const AssignJob<T>& job, const Lists& lists, bool rechecks,
                        int n_threads) {
    std::atomic<int64_t> n_uncertain{0};
    std::atomic<bool> had_room{true};
    Pool::instance().run(lists.n, n_threads, [&](int64_t list) {
        try {
            n_uncertain += assign_list(functions, job, lists, list, rechecks);
        } catch (const std::bad_alloc&) {
            had_room = false;
        }
    });
    if (!had_room) throw std::bad_alloc();
    return n_uncertain;
}

// Squared distances of all rows to a few points, and their sums over each part if `job.costs`.
template <class T>
void compare(const Functions<T>& functions, const CompareJob<T>& job, int n_threads) {
    functions.pack_points(job);
    for_each_part(job.n_rows, n_threads, [&](int64_t start, int64_t stop) {
        double* const costs = job.costs ? job.costs + start / PART_ROWS * job.k : nullptr;
        functions.compare_block(job, start, stop, costs);
    });
}

// Columns of a sum that one thread takes at a time, if one cluster is so large that threads must
// share it. Otherwise a thread takes all columns, since the rows of its cluster stay in a cache.
constexpr int64_t SLICE_COLUMNS = 64;

// Whether one cluster has so many of the rows that threads must share it.
inline bool is_shared(const int64_t* offsets, int64_t k, int n_threads) {
    int64_t largest = 0;
    for (int64_t cluster = 0; cluster < k; ++cluster) {
        largest = std::max(largest, offsets[cluster + 1] - offsets[cluster]);
    }
    return 2 * n_threads * largest > offsets[k];
}

template <class Job, class Function>
void accumulate(const Job& job, int n_threads, Function of_cluster) {
    const int64_t slice = is_shared(job.offsets, job.k, n_threads) ? SLICE_COLUMNS : job.n_features;
    const int64_t n_sums = job.k * parts_of(job.n_features, slice);
    const int64_t n_together = std::max<int64_t>(n_sums / (int64_t{n_threads} * 16), 1);
    Pool::instance().run(parts_of(n_sums, n_together), n_threads, [&](int64_t task) {
        const int64_t stop = std::min((task + 1) * n_together, n_sums);
        // Slice by slice: neighbouring sums belong to different clusters.
        for (int64_t sum = task * n_together; sum < stop; ++sum) {
            const int64_t cluster = sum % job.k, column = sum / job.k * slice;
            if (job.offsets[cluster] == job.offsets[cluster + 1]) continue;
            of_cluster(job, cluster, column, std::min(column + slice, job.n_features));
        }
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

// Adds the moments of other rows to `total` (Chan, Golub and LeVeque 1983).
inline void join(const Moments& total, const Moments& other, int64_t n_features) {
    *total.n_dropped += *other.n_dropped;
    if (!(*other.count > 0)) return;
    const double share = *other.count / (*total.count + *other.count);
    for (int64_t feature = 0; feature < n_features; ++feature) {
        const double delta = other.mean[feature] - total.mean[feature];
        total.m2[feature] += other.m2[feature] + delta * delta * (*total.count * share);
        total.mean[feature] += delta * share;
        total.least[feature] = std::min(total.least[feature], other.least[feature]);
        total.greatest[feature] = std::max(total.greatest[feature], other.greatest[feature]);
    }
    *total.count += *other.count;
}

// Moments of rows, in parts that fit a cache and do not depend on the number of threads.
inline void take_moments(const AnyFunctions& functions, int stored, const MomentsJob& job,
                         const Moments& total, int n_threads) {
    constexpr int64_t PART_NUMBERS = 1 << 14, PARTS_AT_ONCE = 16;
    const int64_t n_features = job.n_features;
    const int64_t part_rows = std::clamp<int64_t>(PART_NUMBERS / n_features, 16, 4096);
    const int64_t room = 2 + 4 * n_features + 4 * functions.strip_width(n_features);
    std::vector<double> found(room * PARTS_AT_ONCE);
    for (int64_t first = 0; first < job.n_rows; first += part_rows * PARTS_AT_ONCE) {
        const int64_t n_parts =
            std::min(parts_of(job.n_rows - first, part_rows), PARTS_AT_ONCE);
        Pool::instance().run(n_parts, n_threads, [&](int64_t part) {
            const int64_t start = first + part * part_rows;
            functions.measure_part[stored](job, start, std::min(start + part_rows, job.n_rows),
                                           Moments(found.data() + part * room, n_features));
        });
        for (int64_t part = 0; part < n_parts; ++part) {
            join(total, Moments(found.data() + part * room, n_features), n_features);
        }
    }
}

// Moves the centroids. Returns the sum of their squared moves, added in the order of clusters.
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

// The least power of two above `value`, if that is not beyond `least`.
inline int32_t exponent_above(double value, int32_t least) {
    int exponent;
    std::frexp(value, &exponent);
    return value > 0 ? std::max<int32_t>(exponent, least) : least;
}

// For each label the exponent of the longest of its rows, from squared lengths and what rows are
// multiplied by: lengths are less than 2 to its power. Last that of the greatest squared distance.
template <class T>
void take_exponents(const int64_t* labels, const T* sq_norms, const T* sq_distances,
                    const double* shares, int64_t n_rows, int64_t k, int32_t least,
                    int32_t* exponents) {
    // Neighbours are compared in different places: they may have the same label.
    constexpr int PLACES = 4;
    std::vector<double> longest(PLACES * k, 0.0);
    double farthest[PLACES] = {};
    for (int64_t row = 0; row < n_rows; ++row) {
        // Of squares, of which no root need be taken.
        const double share = shares == nullptr ? 1 : shares[row];
        const double sq_length = static_cast<double>(sq_norms[row]) * (share * share);
        double& most = longest[labels[row] * PLACES + row % PLACES];
        most = std::max(most, sq_length);
        double& far = farthest[row % PLACES];
        far = std::max(far, static_cast<double>(sq_distances[row]) * share);
    }
    for (int64_t cluster = 0; cluster < k; ++cluster) {
        const double* const of_cluster = longest.data() + cluster * PLACES;
        const double most = std::sqrt(*std::max_element(of_cluster, of_cluster + PLACES));
        // One more, since squared lengths are rounded.
        exponents[cluster] = std::max(exponent_above(most, least - 1) + 1, least);
    }
    exponents[k] = exponent_above(*std::max_element(farthest, farthest + PLACES), 2 * least);
}

// Adds rows of sums in whole numbers; see kernels/ops/graded.py.
inline void add_graded(const AnyFunctions& functions, const GradedJob& job, int n_threads) {
    constexpr int64_t ROWS_AT_ONCE = 16;
    Pool::instance().run(parts_of(job.k, ROWS_AT_ONCE), n_threads, [&](int64_t part) {
        const int64_t stop = std::min((part + 1) * ROWS_AT_ONCE, job.k);
        for (int64_t row = part * ROWS_AT_ONCE; row < stop; ++row) {
            functions.add_graded_row(job, row);
        }
    });
}

// Sorts rows by label, and keeps their order within a label. Fills `rows` with their numbers, or
// with their `positions` where given. Returns false if a label is not from 0 to k - 1.
bool sort_by_label(const int64_t* labels, const int32_t* positions, int64_t n_rows, int64_t k,
                   int32_t* rows, int64_t* offsets) {
    std::fill_n(offsets, k + 1, 0);
    for (int64_t row = 0; row < n_rows; ++row) {
        if (labels[row] < 0 || labels[row] >= k) return false;
        ++offsets[labels[row] + 1];
    }
    for (int64_t cluster = 0; cluster < k; ++cluster) offsets[cluster + 1] += offsets[cluster];
    // While a cluster is filled, its offset moves to its end, where the next cluster begins:
    // shifted by one place, the offsets are right again.
    for (int64_t row = 0; row < n_rows; ++row) {
        rows[offsets[labels[row]]++] = positions ? positions[row] : static_cast<int32_t>(row);
    }
    std::memmove(offsets + 1, offsets, k * sizeof *offsets);
    offsets[0] = 0;
    return true;
}

// Adds rows to the sums of a pass: those of each cluster in float64, as `accumulate` does, and their sum
// then in whole numbers. A sum in float64 stays in a cache, unless threads share a cluster.
template <class T>
void add_to_pass(const InstructionSet& set, AccumulateJob<T> job, GradedJob graded, int n_threads) {
    const Functions<T>& functions = functions_of<T>(set);
    if (n_threads > 1 && is_shared(job.offsets, job.k, n_threads)) {
        std::vector<double> sums(job.k * job.n_features);
        job.sums = sums.data();
        graded.added = sums.data();
        accumulate(job, n_threads, functions.accumulate_cluster);
        add_graded(set.of_any, graded, n_threads);
        return;
    }
    const int64_t n_together = std::max<int64_t>(job.k / (int64_t{n_threads} * 16), 1);
    const int64_t n_tasks = parts_of(job.k, n_together);
    std::vector<double> room(n_tasks * job.n_features);
    Pool::instance().run(n_tasks, n_threads, [&](int64_t task) {
        AccumulateJob<T> one = job;
        GradedJob sums = graded;
        one.sums = room.data() + task * job.n_features;
        sums.added = one.sums;
        const int64_t stop = std::min((task + 1) * n_together, job.k);
        for (int64_t cluster = task * n_together; cluster < stop; ++cluster) {
            one.offsets = job.offsets + cluster;
            if (one.offsets[0] == one.offsets[1]) continue;
            std::fill_n(one.sums, job.n_features, 0.0);
            functions.accumulate_cluster(one, 0, 0, job.n_features);
            sums.sums = graded.sums + cluster * job.n_features;
            sums.grades = graded.grades + cluster;
            set.of_any.add_graded_row(sums, 0);
        }
    });
}

}  // namespace
