// Arithmetic on rows one by one, for one instruction set. Included like tiles.h, after assign.h.

// Dot product of two vectors, in parts for the reason given beside `FEATURES_AT_ONCE`.
template <class T>
INLINE T dot(const T* a, const T* b, int64_t n_features) {
    constexpr int LANES = 32;
    T totals[LANES] = {};
    int64_t feature = 0;
    while (n_features - feature >= LANES) {
        const int64_t end = std::min(feature + LANES * FEATURES_AT_ONCE, n_features);
        T part[LANES] = {};
        for (; feature + LANES <= end; feature += LANES) {
            for (int lane = 0; lane < LANES; ++lane) part[lane] += a[feature + lane] * b[feature + lane];
        }
        for (int lane = 0; lane < LANES; ++lane) totals[lane] += part[lane];
    }
    for (int lane = 0; feature < n_features; ++feature, ++lane) totals[lane] += a[feature] * b[feature];
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) totals[lane] += totals[half + lane];
    }
    return totals[0];
}

// Finds the true label and distance of a row that screening left in doubt. Each centroid whose
// score is not certainly above that of its label is compared by its sum of squared differences, in
// double precision, where nothing cancels. The lowest index wins a tie.
template <class T>
void recheck_row(const AssignJob<T>& job, int64_t row) {
    const T* const x = job.row(row);
    const auto score = [&](int64_t cluster) __attribute__((always_inline)) {
        return job.c_sq[cluster] -
               2 * dot(x, job.centroids + cluster * job.n_features, job.n_features);
    };
    const T limit = score(job.labels[row]) + slack(job, job.sq_norms[row], job.sq_distances[row]);
    double least = std::numeric_limits<double>::infinity();
    for (int64_t cluster = 0; cluster < job.k; ++cluster) {
        if (score(cluster) > limit) continue;  // A NaN rules nothing out.
        const double sq_distance = sq_difference(x, job.centroids + cluster * job.n_features,
                                                 job.n_features);
        if (sq_distance < least) {
            least = sq_distance;
            job.labels[row] = cluster;
            job.sq_distances[row] = static_cast<T>(least);
        }
    }
}

// Takes distances in which most digits cancelled anew, as sums of squared differences.
template <class T>
void correct_block(const AssignJob<T>& job, int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row) {
        if (!(job.sq_distances[row] < job.cancels * job.sq_norms[row])) continue;
        const T* const centroid = job.centroids + job.labels[row] * job.n_features;
        const double exact = sq_difference(job.row(row), centroid, job.n_features);
        job.sq_distances[row] = static_cast<T>(exact);
    }
}

// Fills the exact distances of rows to the centroids of their final labels.
template <class T>
void measure_block(const AssignJob<T>& job, int64_t start, int64_t stop) {
    const auto keep = [&job](int64_t row, double exact) __attribute__((always_inline)) {
        job.sq_distances[row] = static_cast<T>(exact);
        if (job.exact) job.exact[row] = exact;
    };
    const auto centroid_of = [&job](int64_t row) __attribute__((always_inline)) {
        return job.centroids + job.labels[row] * job.n_features;
    };
    // (In float64 a compiler may round squares before adding in one of the two, and not in the other.)
    if (!std::is_same_v<T, float> || job.n_features >= 2 * SUM_LANES) {
        for (int64_t row = start; row < stop; ++row) {
            keep(row, sq_difference(job.row(row), centroid_of(row), job.n_features));
        }
        return;
    }
    for (int64_t row = start; row < stop; row += SUMMED_ROWS) {
        const T *rows[SUMMED_ROWS], *centroids[SUMMED_ROWS];
        for (int i = 0; i < SUMMED_ROWS; ++i) {
            // Spare places hold the last row again.
            const int64_t each = std::min(row + i, stop - 1);
            rows[i] = job.row(each);
            centroids[i] = centroid_of(each);
        }
        const auto found = sq_differences(rows, centroids, job.n_features);
        for (int i = 0; i < SUMMED_ROWS && row + i < stop; ++i) keep(row + i, found[i]);
    }
}

// Fills squared lengths of rows, which of them are dropped, and exact distances to the centroids of the
// labels that they have.
template <class T>
void know_block(const AssignJob<T>& job, int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row) {
        const T sq_norm = static_cast<T>(sq_length(job.given(row), job.n_features));
        job.dropped[row] = !(sq_norm <= job.most_sq_norm);  // NaN too.
        job.sq_norms[row] = job.dropped[row] ? T(0) : sq_norm;
    }
    measure_block(job, start, stop);
}

// Rows of a cluster that are added up before they join its sum, a power of two. They are added in
// pairs, then pairs of pairs: of equal rows no addition rounds. Sums are double, so that sums of
// equal float rows are exact.
constexpr int ROWS_AT_ONCE = 16;

// The vectors at `column` of `n` rows, added in pairs.
template <class T, int n>
INLINE typename Simd<T>::Vector added_in_pairs(const T* const* rows, int64_t column) {
    if constexpr (n == 1) {
        return Simd<T>::load(*rows + column);
    } else {
        return added_in_pairs<T, n / 2>(rows, column) +
               added_in_pairs<T, n / 2>(rows + n / 2, column);
    }
}

// The same of one column.
template <class T, int n>
INLINE T column_in_pairs(const T* const* rows, int64_t column) {
    if constexpr (n == 1) {
        return (*rows)[column];
    } else {
        return column_in_pairs<T, n / 2>(rows, column) +
               column_in_pairs<T, n / 2>(rows + n / 2, column);
    }
}

// Adds `n` rows, those of numbers `from` on, to columns `column` to `stop` of a sum.
template <class T, int n>
INLINE void add_rows(const AccumulateJob<T>& job, const int32_t* from, const int32_t* last,
                     double* __restrict sums, int64_t column, int64_t stop) {
    using S = Simd<T>;
    const T* rows[n];
    for (int row = 0; row < n; ++row) rows[row] = job.x + from[row] * job.n_features;
    const int n_ahead = static_cast<int>(std::min<int64_t>(last - from - n, n));
    if (stop - column < S::width) {
        for (; column < stop; ++column) sums[column] += column_in_pairs<T, n>(rows, column);
        return;
    }
    T part[S::width];
    for (; column + S::width <= stop; column += S::width) {
        // The rows after these lie anywhere in the window, so no processor guesses them.
        for (int row = 0; row < n_ahead; ++row) {
            __builtin_prefetch(job.x + from[n + row] * job.n_features + column);
        }
        S::store(part, added_in_pairs<T, n>(rows, column));
        for (int lane = 0; lane < S::width; ++lane) sums[column + lane] += part[lane];
    }
    if (column == stop) return;
    // The last vector ends where the columns do; those that it shares are added already.
    S::store(part, added_in_pairs<T, n>(rows, stop - S::width));
    for (; column < stop; ++column) sums[column] += part[column - (stop - S::width)];
}

// Adds the last rows, fewer than `2 * n`.
template <class T, int n>
INLINE void add_last_rows(const AccumulateJob<T>& job, const int32_t* row, const int32_t* last,
                          double* sums, int64_t column, int64_t stop) {
    if (last - row >= n) {
        add_rows<T, n>(job, row, last, sums, column, stop);
        row += n;
    }
    if constexpr (n > 1) add_last_rows<T, n / 2>(job, row, last, sums, column, stop);
}

// Adds the rows of one cluster, in their order, to columns `column` to `stop` of its sum.
template <class T>
void accumulate_cluster(const AccumulateJob<T>& job, int64_t cluster, int64_t column,
                        int64_t stop) {
    const int32_t* row = job.rows + job.offsets[cluster];
    const int32_t* const last = job.rows + job.offsets[cluster + 1];
    double* __restrict const sums = job.sums + cluster * job.n_features;
    if (job.shares != nullptr) {
        for (; row < last; ++row) {
            const T* const x = job.x + *row * job.n_features;
            const double share = job.shares[*row];
            for (int64_t i = column; i < stop; ++i) sums[i] += share * static_cast<double>(x[i]);
        }
        return;
    }
    for (; last - row >= ROWS_AT_ONCE; row += ROWS_AT_ONCE) {
        add_rows<T, ROWS_AT_ONCE>(job, row, last, sums, column, stop);
    }
    add_last_rows<T, ROWS_AT_ONCE / 2>(job, row, last, sums, column, stop);
}

INLINE int64_t bits_of(double value) {
    int64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <class T>
using Narrow __attribute__((vector_size(VECTOR_BYTES / sizeof(double) * sizeof(T)))) = T;

// Adds rows `row` to `stop_row` to `n` vectors of the sums of their cluster, from `column` on.
template <class T, int n>
INLINE void fix_vectors(const FixedJob<T>& job, int64_t cluster, const int32_t* row,
                        const int32_t* stop_row, int64_t column) {
    using S = Simd<double>;
    using Integers = typename S::IndexVector;
    constexpr int LIMBS = std::is_same_v<T, double> ? 2 : 1;
    const double scale = job.scale(cluster), rest_scale = job.rest();
    const int64_t n_rounders = static_cast<int64_t>(static_cast<uint64_t>(stop_row - row) *
                                                    static_cast<uint64_t>(bits_of(ROUNDER)));
    Integers sums[LIMBS][n] = {};
    const int32_t* const all_rows = job.rows + job.offsets[job.k];
    for (; row < stop_row; ++row) {
        const T* const x = job.x + *row * job.n_features + column;
        // Rows of the next clusters too: a cluster may have few.
        if (row + ROWS_AT_ONCE < all_rows) {
            const T* const next = job.x + row[ROWS_AT_ONCE] * job.n_features + column;
            for (int v = 0; v < n; v += std::max<int>(64 / sizeof(T) / S::width, 1)) {
                __builtin_prefetch(next + v * S::width);
            }
        }
        const double share = job.shares == nullptr ? 1 : job.shares[*row];
#pragma GCC unroll 8
        for (int v = 0; v < n; ++v) {
            Narrow<T> narrow;
            std::memcpy(&narrow, x + v * S::width, sizeof narrow);
            // A product by a power of two is exact: whether it is rounded before the addition
            // makes no difference.
            const auto value = __builtin_convertvector(narrow, typename S::Vector) * share * scale;
            const auto rounded = value + ROUNDER;
            sums[0][v] += (Integers)rounded;
            if constexpr (LIMBS == 2) {
                const auto rest = (value - (rounded - ROUNDER)) * rest_scale + ROUNDER;
                sums[1][v] += (Integers)rest;
            }
        }
    }
    for (int limb = 0; limb < LIMBS; ++limb) {
        int64_t* const to = job.sums + (limb * job.k + cluster) * job.n_features + column;
        for (int v = 0; v < n; ++v) {
            Integers all;
            std::memcpy(&all, to + v * S::width, sizeof all);
            all += sums[limb][v] - n_rounders;
            std::memcpy(to + v * S::width, &all, sizeof all);
        }
    }
}

// The same for columns `column` to `stop`, fewer than a vector has. Vectors reach into the next row;
// what they find there is thrown away.
template <class T>
INLINE void fix_columns(const FixedJob<T>& job, int64_t cluster, const int32_t* row,
                        const int32_t* stop_row, int64_t column, int64_t stop) {
    using S = Simd<double>;
    using Integers = typename S::IndexVector;
    constexpr int LIMBS = std::is_same_v<T, double> ? 2 : 1;
    const double scale = job.scale(cluster), rest_scale = job.rest();
    // The last row from which a whole vector lies within the window.
    const int64_t last_whole = (job.n_window * job.n_features - column - S::width) / job.n_features;
    const bool has_whole = job.n_window * job.n_features >= column + S::width;
    Integers sums[LIMBS] = {};
    for (; row < stop_row; ++row) {
        const T* const x = job.x + *row * job.n_features + column;
        const double share = job.shares == nullptr ? 1 : job.shares[*row];
        Narrow<T> narrow{};
        if (has_whole && *row <= last_whole) {
            std::memcpy(&narrow, x, sizeof narrow);
        } else {
            std::memcpy(&narrow, x, (stop - column) * sizeof(T));
        }
        const auto value = __builtin_convertvector(narrow, typename S::Vector) * share * scale;
        const auto rounded = value + ROUNDER;
        sums[0] += (Integers)rounded - bits_of(ROUNDER);
        if constexpr (LIMBS == 2) {
            const auto rest = (value - (rounded - ROUNDER)) * rest_scale + ROUNDER;
            sums[1] += (Integers)rest - bits_of(ROUNDER);
        }
    }
    for (int limb = 0; limb < LIMBS; ++limb) {
        int64_t* const to = job.sums + (limb * job.k + cluster) * job.n_features;
        for (int64_t i = column; i < stop; ++i) to[i] += sums[limb][i - column];
    }
}

// Adds the rows of one cluster to columns `column` to `stop` of its sums.
template <class T>
void fix_cluster(const FixedJob<T>& job, int64_t cluster, int64_t column, int64_t stop) {
    constexpr int WIDTH = Simd<double>::width, AT_ONCE = 8;
    const int32_t* row = job.rows + job.offsets[cluster];
    const int32_t* const last = job.rows + job.offsets[cluster + 1];
    for (; row < last; row += std::min<int64_t>(ROWS_AT_ONCE, last - row)) {
        const int32_t* const stop_row = row + std::min<int64_t>(ROWS_AT_ONCE, last - row);
        int64_t from = column;
        for (; from + AT_ONCE * WIDTH <= stop; from += AT_ONCE * WIDTH) {
            fix_vectors<T, AT_ONCE>(job, cluster, row, stop_row, from);
        }
        for (; from + WIDTH <= stop; from += WIDTH) {
            fix_vectors<T, 1>(job, cluster, row, stop_row, from);
        }
        if (from < stop) fix_columns(job, cluster, row, stop_row, from, stop);
    }
}

// Sum of squared distances in whole numbers.
template <class T>
int64_t fixed_total(const T* __restrict sq_distances, const double* __restrict shares, int64_t n_rows,
                    double scale) {
    int64_t total = 0;
    if (shares == nullptr) {
        for (int64_t row = 0; row < n_rows; ++row) {
            total += bits_of(static_cast<double>(sq_distances[row]) * scale + ROUNDER) - bits_of(ROUNDER);
        }
        return total;
    }
    for (int64_t row = 0; row < n_rows; ++row) {
        const double value = static_cast<double>(sq_distances[row]) * shares[row];
        total += bits_of(value * scale + ROUNDER) - bits_of(ROUNDER);
    }
    return total;
}

// Adds row `row` of sums in whole numbers; see kernels/ops/graded.py.
void add_graded_row(const GradedJob& job, int64_t row) {
    const double* __restrict const added = job.added + row * job.n_features;
    int64_t* __restrict const large = job.sums + row * job.n_features;
    int64_t* __restrict const small = large + job.k * job.n_features;
    double most = 0;
    for (int64_t i = 0; i < job.n_features; ++i) most = std::max(most, std::fabs(added[i]));
    if (!(most > 0)) return;
    int exponent;
    std::frexp(most * job.unit, &exponent);
    ++exponent;  // All are less than half of the next grade's size, so that they are 0 of these.
    // Rounded up, of negative exponents too.
    const int up = exponent > 0 ? (exponent + GRADE_BITS - 1) / GRADE_BITS : -(-exponent / GRADE_BITS);
    const int64_t grade = std::max(up - 1, LEAST_GRADE), rise = grade - job.grades[row];
    if (rise > 0) {
        for (int64_t i = 0; i < job.n_features; ++i) {
            small[i] = rise == 1 ? large[i] : 0;
            large[i] = 0;
        }
        job.grades[row] = grade;
    }
    const double scale = std::ldexp(job.unit, -GRADE_BITS * static_cast<int>(job.grades[row]));
    for (int64_t i = 0; i < job.n_features; ++i) {
        const double value = added[i] * scale, rounded = value + ROUNDER;
        const double rest = (value - (rounded - ROUNDER)) * (int64_t{1} << GRADE_BITS) + ROUNDER;
        large[i] += bits_of(rounded) - bits_of(ROUNDER);
        small[i] += bits_of(rest) - bits_of(ROUNDER);
    }
}

// Rows that are prefetched ahead, at most. They lie anywhere in the window, so no processor guesses
// them.
constexpr int64_t PREFETCH_ROWS = 32;

// Widening, scaling and `sq_length` are plain loops, which compilers vectorise for every dtype.
template <class Stored, class T>
void widen_row(const Stored* __restrict from, T* __restrict to, int64_t n_features) {
    for (int64_t feature = 0; feature < n_features; ++feature) {
        to[feature] = static_cast<T>(from[feature]);
    }
}

template <class T>
void scale_row(T* __restrict x, const T* __restrict shift, const T* __restrict factor,
               int64_t n_features) {
    for (int64_t feature = 0; feature < n_features; ++feature) {
        x[feature] = (x[feature] - shift[feature]) * factor[feature];
    }
}

template <class Stored, class T>
void gather_rows(const GatherJob<T>& job, int64_t start, int64_t stop) {
    const Stored* const window = static_cast<const Stored*>(job.window);
    const int64_t row_bytes = job.n_features * static_cast<int64_t>(sizeof(Stored));
    const int64_t ahead =
        std::clamp<int64_t>(PREFETCH_BYTES / std::max<int64_t>(row_bytes, 1), 1, PREFETCH_ROWS);
    for (int64_t row = start; row < stop; ++row) {
        if (job.rows != nullptr && row + ahead < job.n_rows) {
            const char* next = reinterpret_cast<const char*>(
                window + job.rows[row + ahead] * job.n_features);
            for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(next + byte);
        }
        T* const x = job.x + row * job.n_features;
        const int64_t position = job.rows == nullptr ? row : job.rows[row];
        const Stored* const from = window + position * job.n_features;
        // Of a row that is used where it lies, only the squared length is missing.
        if (static_cast<const void*>(from) != x) widen_row(from, x, job.n_features);
        if (job.shift != nullptr) scale_row(x, job.shift, job.factor, job.n_features);
        job.sq_norms[row] = static_cast<T>(sq_length(x, job.n_features));
    }
}

template <class T>
void measure_rows(const DistanceJob<T>& job, int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row) {
        const T* const x = job.x + row * job.n_features;
        const T* const centroid = job.centroids + job.labels[row] * job.n_features;
        job.sq_distances[row] = sq_difference(x, centroid, job.n_features);
    }
}

// The number that turns a cluster's sum into its centroid: its mass, or the length of the sum. The
// length is that of sum / largest, since the squares of small sums would vanish; 0 of a zero sum.
template <class T>
INLINE double divisor_of(const MoveJob<T>& job, int64_t cluster) {
    if (!job.spherical) return job.masses[cluster] > 0 ? job.masses[cluster] : 1;
    const double* const sum = job.sums + cluster * job.n_features;
    double largest = 0;
    for (int64_t feature = 0; feature < job.n_features; ++feature) {
        largest = std::max(largest, std::fabs(sum[feature]));
    }
    if (largest == 0) return 0;
    const auto share = [sum, largest](int64_t feature) __attribute__((always_inline)) {
        return sum[feature] / largest;
    };
    return largest * std::sqrt(sum_of_squares(job.n_features, share));
}

template <class T>
void move_cluster(const MoveJob<T>& job, int64_t cluster) {
    job.sq_steps[cluster] = 0;
    if (job.gains != nullptr) job.gains[cluster] = 0;
    if (!job.touched[cluster]) return;
    double* __restrict const sum = job.sums + cluster * job.n_features;
    T* __restrict const centroid = job.centroids + cluster * job.n_features;
    if (job.added != nullptr) {
        const double* __restrict const added = job.added + cluster * job.n_features;
        const double kept = job.kept == nullptr ? 1 : job.kept[cluster];
        for (int64_t feature = 0; feature < job.n_features; ++feature) {
            sum[feature] = sum[feature] * kept + added[feature] * job.unit;
        }
    }
    const double divisor = divisor_of(job, cluster);
    if (divisor == 0) return;
    // |x - c|^2 - |x - c'|^2 = (c' - c) . (2 x - c - c'), summed over the rows of the cluster.
    for (int64_t feature = 0; job.gains != nullptr && feature < job.n_features; ++feature) {
        const double from = centroid[feature], to = static_cast<T>(sum[feature] / divisor);
        job.gains[cluster] += (to - from) * (2 * sum[feature] - job.masses[cluster] * (from + to));
    }
    const auto step = [=](int64_t feature) __attribute__((always_inline)) {
        const T moved = static_cast<T>(sum[feature] / divisor);
        const double difference = moved - centroid[feature];
        centroid[feature] = moved;
        return difference;
    };
    job.sq_steps[cluster] = sum_of_squares(job.n_features, step);
}
