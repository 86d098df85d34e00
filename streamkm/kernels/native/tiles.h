// Arithmetic on tiles of rows and centroids, for one instruction set.
//
// dispatch.h includes it once for each instruction set, in a namespace of its own, with
// VECTOR_BYTES and TILE_ROWS defined. Its vectors are an extension that GCC and Clang share: one
// source serves every instruction set, and the compiler keeps a tile of scores in registers.

template <class T>
struct Simd {
    static constexpr int width = VECTOR_BYTES / sizeof(T);
    // As wide as T, so that a comparison of two vectors of T selects among indices too.
    using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    typedef T Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef Index IndexVector __attribute__((vector_size(VECTOR_BYTES)));

    static INLINE Vector load(const T* from) {
        Vector value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    // `n` elements, then zeros.
    static INLINE Vector load_some(const T* from, int64_t n) {
        Vector value{};
        std::memcpy(&value, from, n * sizeof(T));
        return value;
    }
    static INLINE void store(T* to, const Vector& value) { std::memcpy(to, &value, sizeof value); }
};

// Vectors of centroids that are scored at once. With TILE_ROWS rows their sums fill the
// registers, and there are enough sums to hide the latency of an addition.
constexpr int PANEL_VECTORS = 2;
constexpr int BLOCK_ROWS = TILE_ROWS * TILES_PER_BLOCK;

template <class T>
constexpr int panel_width() {
    return PANEL_VECTORS * Simd<T>::width;
}

template <class T>
int64_t n_panels(int64_t k) {
    return (k + panel_width<T>() - 1) / panel_width<T>();
}

// The least and the second least score of each lane, and the index of the least.
template <class T>
struct Best {
    typename Simd<T>::Vector first, second;
    typename Simd<T>::IndexVector index;

    INLINE void clear() {
        first = second = typename Simd<T>::Vector{} + std::numeric_limits<T>::infinity();
        index = typename Simd<T>::IndexVector{};
    }

    // A NaN is less than no score, so it is passed over.
    INLINE void offer(const typename Simd<T>::Vector& score,
                      const typename Simd<T>::IndexVector& where) {
        const auto better = score < first;
        const auto loser = better ? first : score;
        second = loser < second ? loser : second;
        first = better ? score : first;
        index = better ? where : index;
    }
};

// Cuts `a` and `b` into groups of `half` lanes. Returns every second group, from number `which`
// on, of `a` and of `b` in turn.
template <class T, int half, int which, class V, size_t... lane>
INLINE V groups(const V& a, const V& b, std::index_sequence<lane...>) {
    using Index = typename Simd<T>::Index;
#define SOURCE                                                              \
    static_cast<Index>(lane / (2 * half) * (2 * half) + which * half + lane % half + \
                       (lane / half % 2 ? Simd<T>::width : 0))
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (SOURCE)...);
#else
    return __builtin_shuffle(a, b, typename Simd<T>::IndexVector{(SOURCE)...});
#endif
#undef SOURCE
}

// Turns as many rows as there are lanes into columns.
template <class T, int half = 1>
INLINE void transpose(typename Simd<T>::Vector (&rows)[Simd<T>::width]) {
    constexpr auto lanes = std::make_index_sequence<Simd<T>::width>{};
#pragma GCC unroll 16
    for (int row = 0; row < Simd<T>::width; ++row) {
        if ((row & half) != 0) continue;
        const auto a = rows[row], b = rows[row + half];
        rows[row] = groups<T, half, 0>(a, b, lanes);
        rows[row + half] = groups<T, half, 1>(a, b, lanes);
    }
    if constexpr (2 * half < Simd<T>::width) transpose<T, 2 * half>(rows);
}

// Merges the lanes of two rows: each row is left with half as many.
template <class T, int half>
INLINE Best<T> merged(const Best<T>& a, const Best<T>& b) {
    constexpr auto lanes = std::make_index_sequence<Simd<T>::width>{};
    Best<T> best{groups<T, half, 0>(a.first, b.first, lanes),
                 groups<T, half, 0>(a.second, b.second, lanes),
                 groups<T, half, 0>(a.index, b.index, lanes)};
    best.offer(groups<T, half, 1>(a.first, b.first, lanes),
               groups<T, half, 1>(a.index, b.index, lanes));
    const auto second = groups<T, half, 1>(a.second, b.second, lanes);
    best.second = second < best.second ? second : best.second;
    return best;
}

// Merges the lanes of `n` rows into one vector, row beside row: with as many rows as lanes, each is
// left with one. All lanes work in every round, which they would not row by row.
template <class T, int n = Simd<T>::width>
INLINE Best<T> reduced(const Best<T>* rows, int stride = 1) {
    if constexpr (n == 1) {
        return *rows;
    } else {
        const Best<T> even = reduced<T, n / 2>(rows, 2 * stride);
        const Best<T> odd = reduced<T, n / 2>(rows + stride, 2 * stride);
        return merged<T, Simd<T>::width / n>(even, odd);
    }
}

// Rows that are needed soon. They may lie anywhere, so no processor guesses them. They are
// prefetched line by line while other rows are scored: all at once they would take every line fill
// buffer, and the scores would wait for one.
template <class T>
struct Upcoming {
    static constexpr int64_t LINE = 64 / sizeof(T);
    const T* rows[TILE_ROWS];
    int n = 0;

    INLINE void ask_for(int64_t feature) const {
        // (Into the first level: prefetching into the second did nothing on Zen 5.)
        for (int row = 0; row < n; ++row) __builtin_prefetch(rows[row] + feature);
    }
};

// The scores |c|^2 - 2 x.c of TILE_ROWS rows against one panel of centroids, whose
// features lie together: panel[feature][lane]. Each score is summed feature by feature, so
// that it does not depend on its tile. It is summed in parts of FEATURES_AT_ONCE, because n
// additions in sequence can be off by n / 4 units of (|x| + |c|)^2, where all products are alike
// and all are rounded the same way. In parts the error stays within the bound of `rounding`.
constexpr int64_t FEATURES_AT_ONCE = 128;

template <class T, int n_vectors>
struct Scores {
    using S = Simd<T>;
    typename S::Vector of_rows[TILE_ROWS][n_vectors];

    INLINE void compute(const T* const (&rows)[TILE_ROWS], int64_t n_features, const T* panel,
                        const T* c_sq, const Upcoming<T>& upcoming) {
        typename S::Vector totals[TILE_ROWS][n_vectors] = {};
        for (int64_t begin = 0; begin < n_features; begin += FEATURES_AT_ONCE) {
            const int64_t end = std::min(begin + FEATURES_AT_ONCE, n_features);
            typename S::Vector products[TILE_ROWS][n_vectors] = {};
            for (int64_t feature = begin; feature < end;) {
                upcoming.ask_for(feature);
                const int64_t line = std::min(feature + Upcoming<T>::LINE, end);
                for (; feature < line; ++feature, panel += panel_width<T>()) {
                    typename S::Vector centroids[n_vectors];
#pragma GCC unroll 4
                    for (int v = 0; v < n_vectors; ++v) {
                        centroids[v] = S::load(panel + v * S::width);
                    }
#pragma GCC unroll 16
                    for (int row = 0; row < TILE_ROWS; ++row) {
                        const T x = rows[row][feature];
#pragma GCC unroll 4
                        for (int v = 0; v < n_vectors; ++v) products[row][v] += centroids[v] * x;
                    }
                }
            }
#pragma GCC unroll 16
            for (int row = 0; row < TILE_ROWS; ++row) {
#pragma GCC unroll 4
                for (int v = 0; v < n_vectors; ++v) totals[row][v] += products[row][v];
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < n_vectors; ++v) {
            const auto length = S::load(c_sq + v * S::width);
#pragma GCC unroll 16
            for (int row = 0; row < TILE_ROWS; ++row) {
                of_rows[row][v] = length - 2 * totals[row][v];
            }
        }
    }
};

template <class T, int n_vectors>
INLINE void score_tile(const T* const (&rows)[TILE_ROWS], int64_t n_features, const T* panel,
                       const T* c_sq, const Upcoming<T>& upcoming, int64_t first_index,
                       Best<T>* best) {
    using S = Simd<T>;
    Scores<T, n_vectors> scores;
    scores.compute(rows, n_features, panel, c_sq, upcoming);
#pragma GCC unroll 4
    for (int v = 0; v < n_vectors; ++v) {
        typename S::IndexVector where;
        for (int lane = 0; lane < S::width; ++lane) {
            where[lane] = static_cast<typename S::Index>(first_index + v * S::width + lane);
        }
#pragma GCC unroll 16
        for (int row = 0; row < TILE_ROWS; ++row) best[row].offer(scores.of_rows[row][v], where);
    }
}

// Packs the centroids of one panel. A lane without a centroid scores infinity.
template <class T>
void pack_panel(const AssignJob<T>& job, int64_t panel) {
    constexpr int width = panel_width<T>();
    T* packed = job.packed + panel * width * job.n_features;
    for (int lane = 0; lane < width; ++lane) {
        const int64_t index = panel * width + lane;
        const T* centroid = job.centroids + index * job.n_features;
        double sq_norm = index < job.k ? 0 : std::numeric_limits<double>::infinity();
        for (int64_t feature = 0; feature < job.n_features; ++feature) {
            const T value = index < job.k ? centroid[feature] : T(0);
            packed[feature * width + lane] = value;
            sq_norm += static_cast<double>(value) * value;
        }
        job.c_sq[index] = static_cast<T>(sq_norm);
    }
}

// Lanes of a sum: one number for all instruction sets, so that all add in the same order.
constexpr int SUM_LANES = 16;

// Sum of `element(i)` for i from 0 to n - 1.
template <class Element>
INLINE double sum_of(int64_t n, const Element& element) {
    double sum = 0;
    int64_t i = 0;
    if (n >= SUM_LANES) {
        double sums[SUM_LANES] = {};
        for (; i + SUM_LANES <= n; i += SUM_LANES) {
            for (int lane = 0; lane < SUM_LANES; ++lane) sums[lane] += element(i + lane);
        }
        for (int lane = 0; lane < SUM_LANES; ++lane) sum += sums[lane];
    }
    for (; i < n; ++i) sum += element(i);
    return sum;
}

template <class Element>
INLINE double sum_of_squares(int64_t n_features, const Element& element) {
    return sum_of(n_features, [element](int64_t feature) __attribute__((always_inline)) {
        const double value = element(feature);
        return value * value;
    });
}

template <class T>
INLINE double sq_length(const T* x, int64_t n_features) {
    return sum_of_squares(n_features, [x](int64_t feature) __attribute__((always_inline)) {
        return static_cast<double>(x[feature]);
    });
}

// Squared distance of two points, as the sum of squared differences.
template <class T>
INLINE double sq_difference(const T* a, const T* b, int64_t n_features) {
    return sum_of_squares(n_features, [a, b](int64_t feature) __attribute__((always_inline)) {
        return static_cast<double>(a[feature]) - static_cast<double>(b[feature]);
    });
}

// Rows whose squares are summed at once: a vector of sums.
constexpr int SUMMED_ROWS = Simd<double>::width;

// `sum_of_squares` of SUMMED_ROWS rows: each in the same order, and so the same bits. At the end lanes
// are added up row beside row, where one row alone waits for each addition. `element(row, feature)` is a
// double, and `vector(row, feature)` a vector of them.
template <class Element, class Vector>
INLINE Simd<double>::Vector sums_of_squares(int64_t n_features, const Element& element, const Vector& vector) {
    using V = Simd<double>::Vector;
    constexpr int PARTS = SUM_LANES / SUMMED_ROWS;
    V total{};
    int64_t feature = 0;
    if (n_features >= SUM_LANES) {
        V lanes[PARTS][SUMMED_ROWS] = {};
        for (; feature + SUM_LANES <= n_features; feature += SUM_LANES) {
#pragma GCC unroll 16
            for (int part = 0; part < PARTS; ++part) {
#pragma GCC unroll 16
                for (int row = 0; row < SUMMED_ROWS; ++row) {
                    const V value = vector(row, feature + part * SUMMED_ROWS);
                    lanes[part][row] += value * value;
                }
            }
        }
#pragma GCC unroll 16
        for (int part = 0; part < PARTS; ++part) {
            transpose<double>(lanes[part]);
#pragma GCC unroll 16
            for (int lane = 0; lane < SUMMED_ROWS; ++lane) total += lanes[part][lane];
        }
    }
    for (; feature + SUMMED_ROWS <= n_features; feature += SUMMED_ROWS) {
        V columns[SUMMED_ROWS];
#pragma GCC unroll 16
        for (int row = 0; row < SUMMED_ROWS; ++row) columns[row] = vector(row, feature);
        transpose<double>(columns);
#pragma GCC unroll 16
        for (int lane = 0; lane < SUMMED_ROWS; ++lane) total += columns[lane] * columns[lane];
    }
    for (; feature < n_features; ++feature) {
        V column;
#pragma GCC unroll 16
        for (int row = 0; row < SUMMED_ROWS; ++row) column[row] = element(row, feature);
        total += column * column;
    }
    return total;
}

// As many numbers as a vector of doubles has, as doubles.
template <class T>
INLINE Simd<double>::Vector widened(const T* from) {
    typedef T Narrow __attribute__((vector_size(VECTOR_BYTES / sizeof(double) * sizeof(T))));
    Narrow narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    return __builtin_convertvector(narrow, Simd<double>::Vector);
}

// Squared distances of SUMMED_ROWS pairs of points, as `sq_difference` has them.
template <class T>
INLINE Simd<double>::Vector sq_differences(const T* const* a, const T* const* b, int64_t n_features) {
    return sums_of_squares(
        n_features,
        [a, b](int row, int64_t feature) __attribute__((always_inline)) {
            return static_cast<double>(a[row][feature]) - static_cast<double>(b[row][feature]);
        },
        [a, b](int row, int64_t feature) __attribute__((always_inline)) {
            return widened(a[row] + feature) - widened(b[row] + feature);
        });
}

// Finds where the rows of a tile lie. If rows may be dropped, first fills their squared lengths and
// which are dropped.
template <class T>
INLINE void locate_tile(const AssignJob<T>& job, int64_t tile, int64_t stop, const T** located) {
    const int64_t end = std::min(tile + TILE_ROWS, stop);
    for (int64_t row = tile; row < end; ++row) {
        if (job.dropped) {
            const T sq_norm = static_cast<T>(sq_length(job.given(row), job.n_features));
            job.dropped[row] = !(sq_norm <= job.most_sq_norm);  // NaN too.
            job.sq_norms[row] = job.dropped[row] ? T(0) : sq_norm;
        }
        located[row - tile] = job.row(row);
    }
}

// How far ahead rows are prefetched: a tile at least, MOST_TILES_AHEAD of short rows.
constexpr int64_t PREFETCH_BYTES = 4096, MOST_TILES_AHEAD = 8;

// The rows of a tile ahead that are prefetched while panel `number` of `n` is scored.
template <class T>
INLINE Upcoming<T> upcoming_rows(const AssignJob<T>& job, int64_t tile, int64_t number, int64_t n) {
    Upcoming<T> upcoming;
    // Processors guess short rows that follow each other.
    if (!job.positions && job.n_features < Upcoming<T>::LINE) return upcoming;
    const int64_t tile_bytes = TILE_ROWS * job.n_features * static_cast<int64_t>(sizeof(T));
    const int64_t ahead =
        TILE_ROWS * std::clamp<int64_t>(PREFETCH_BYTES / tile_bytes, 1, MOST_TILES_AHEAD);
    const int64_t end = (number + 1) * TILE_ROWS / n;
    for (int64_t row = number * TILE_ROWS / n; row < end; ++row) {
        const int64_t next = std::min(tile + ahead + row, job.n_rows - 1);
        upcoming.rows[upcoming.n++] = job.given(next);
    }
    return upcoming;
}

// The two least scores of each row of a block, and the label of the least.
template <class T>
struct Screened {
    T firsts[BLOCK_ROWS], seconds[BLOCK_ROWS];
    int64_t labels[BLOCK_ROWS];

    // Keeps the results of as many rows as there are lanes, from `row` on.
    INLINE void keep(int64_t row, const Best<T>& of_rows) {
        Simd<T>::store(firsts + row, of_rows.first);
        Simd<T>::store(seconds + row, of_rows.second);
        for (int lane = 0; lane < Simd<T>::width; ++lane) labels[row + lane] = of_rows.index[lane];
    }
};

template <class T>
INLINE void screen_block(const AssignJob<T>& job, int64_t start, int64_t stop,
                         Screened<T>& screened) {
    constexpr int width = panel_width<T>();
    const int64_t panel_elements = width * job.n_features;
    const int64_t group = std::max<int64_t>(GROUP_BYTES / (panel_elements * sizeof(T)), 1);
    const int64_t end = n_panels<T>(job.k);
    const T* located[BLOCK_ROWS];
    Best<T> best[BLOCK_ROWS];
    for (Best<T>& one : best) one.clear();
    for (int64_t first = 0; first < end; first += group) {
        for (int64_t tile = start; tile < stop; tile += TILE_ROWS) {
            if (first == 0) locate_tile(job, tile, stop, located + (tile - start));
            const T* rows[TILE_ROWS];
            for (int row = 0; row < TILE_ROWS; ++row) {
                // Spare places of the last tile hold the last row again.
                rows[row] = located[std::min(tile + row, stop - 1) - start];
            }
            const int64_t last = std::min(first + group, end);
            for (int64_t panel = first; panel < last; ++panel) {
                const T* packed = job.packed + panel * panel_elements;
                const T* c_sq = job.c_sq + panel * width;
                Best<T>* of_tile = best + (tile - start);
                Upcoming<T> upcoming;
                if (first == 0) upcoming = upcoming_rows(job, tile, panel, last);
                if (job.k - panel * width <= Simd<T>::width) {
                    // Half of the last panel holds no centroid.
                    score_tile<T, 1>(rows, job.n_features, packed, c_sq, upcoming, panel * width,
                                     of_tile);
                } else {
                    score_tile<T, PANEL_VECTORS>(rows, job.n_features, packed, c_sq, upcoming,
                                                 panel * width, of_tile);
                }
            }
        }
    }
    static_assert(BLOCK_ROWS % Simd<T>::width == 0, "a block is a whole number of vectors");
    for (int64_t row = 0; row < stop - start; row += Simd<T>::width) {
        screened.keep(row, reduced<T>(best + row));
    }
}
