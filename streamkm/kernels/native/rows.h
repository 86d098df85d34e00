// Arithmetic on rows one by one, for one instruction set. Included like tiles.h, after assign.h.

// Squared distance of two points, as the sum of squared differences.
template <class T>
INLINE double sq_difference(const T* a, const T* b, int64_t n_features) {
    return sum_of_squares(n_features, [a, b](int64_t feature) __attribute__((always_inline)) {
        return static_cast<double>(a[feature]) - static_cast<double>(b[feature]);
    });
}

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

// Fills the exact distances of rows to the centroids of their final labels.
template <class T>
void measure_block(const AssignJob<T>& job, int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row) {
        const T* const centroid = job.centroids + job.labels[row] * job.n_features;
        job.exact[row] = sq_difference(job.row(row), centroid, job.n_features);
    }
}

// Rows of a cluster that are added up before they join its sum: of a thousand equal rows, added one
// by one, the last would each lose the same digits.
constexpr int ROWS_AT_ONCE = 32;

// Vectors of columns that are added up at once, at most: one pass over rows that are no wider.
constexpr int MOST_VECTORS = 8;

// Adds rows, in their order, to `n_vectors` vectors of columns from `column` on. The last one ends
// at `stop`. It may share columns with the one before; both compute the same sums for them.
template <class T, int n_vectors>
INLINE void accumulate_columns(const AccumulateJob<T>& job, const int32_t* first,
                               const int32_t* last, T* sums, int64_t column, int64_t stop) {
    using S = Simd<T>;
    constexpr int n_others = n_vectors - 1;
    const int64_t tail = stop - S::width - column;
    const T* const x = job.x + column;
    sums += column;
    typename S::Vector held[n_vectors];
    for (int v = 0; v < n_others; ++v) held[v] = S::load(sums + v * S::width);
    held[n_others] = S::load(sums + tail);
    for (const int32_t* begin = first; begin < last; begin += ROWS_AT_ONCE) {
        const int32_t* const end = last - begin > ROWS_AT_ONCE ? begin + ROWS_AT_ONCE : last;
        typename S::Vector part[n_vectors] = {};
        for (const int32_t* row = begin; row < end; ++row) {
            const T* const from = x + *row * job.n_features;
#pragma GCC unroll 8
            for (int v = 0; v < n_others; ++v) part[v] += S::load(from + v * S::width);
            part[n_others] += S::load(from + tail);
        }
#pragma GCC unroll 8
        for (int v = 0; v < n_vectors; ++v) held[v] += part[v];
    }
    for (int v = 0; v < n_others; ++v) S::store(sums + v * S::width, held[v]);
    S::store(sums + tail, held[n_others]);
}

template <class T, int n_vectors = MOST_VECTORS>
INLINE void accumulate_vectors(int64_t n, const AccumulateJob<T>& job, const int32_t* first,
                               const int32_t* last, T* sums, int64_t column, int64_t stop) {
    if constexpr (n_vectors > 1) {
        if (n < n_vectors) {
            accumulate_vectors<T, n_vectors - 1>(n, job, first, last, sums, column, stop);
            return;
        }
    }
    accumulate_columns<T, n_vectors>(job, first, last, sums, column, stop);
}

// Adds the rows of one cluster, in their order, to columns `column` to `stop` of its sum.
template <class T>
INLINE void accumulate_cluster(const AccumulateJob<T>& job, int64_t cluster, int64_t column,
                               int64_t stop) {
    using S = Simd<T>;
    const int32_t* const first = job.rows + job.offsets[cluster];
    const int32_t* const last = job.rows + job.offsets[cluster + 1];
    T* const sums = job.sums + cluster * job.n_features;
    if (stop - column >= S::width) {
        while (column < stop) {
            // Leaves no vector alone at the end: it must share columns with one of the same pass.
            const int64_t n_left = (stop - column + S::width - 1) / S::width;
            const int64_t n =
                n_left == MOST_VECTORS + 1 ? n_left - 2 : std::min<int64_t>(n_left, MOST_VECTORS);
            const int64_t end = std::min<int64_t>(stop, column + n * S::width);
            accumulate_vectors<T>(n, job, first, last, sums, column, end);
            column = end;
        }
        return;
    }
    for (const int32_t* begin = first; begin < last; begin += ROWS_AT_ONCE) {
        const int32_t* const end = last - begin > ROWS_AT_ONCE ? begin + ROWS_AT_ONCE : last;
        T part[S::width] = {};
        for (const int32_t* row = begin; row < end; ++row) {
            const T* const x = job.x + *row * job.n_features;
            for (int64_t i = column; i < stop; ++i) part[i - column] += x[i];
        }
        for (int64_t i = column; i < stop; ++i) sums[i] += part[i - column];
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
    if (!job.touched[cluster]) return;
    double* __restrict const sum = job.sums + cluster * job.n_features;
    T* __restrict const centroid = job.centroids + cluster * job.n_features;
    if (job.added != nullptr) {
        const T* __restrict const added = job.added + cluster * job.n_features;
        for (int64_t feature = 0; feature < job.n_features; ++feature) {
            sum[feature] += static_cast<double>(added[feature]) * job.unit;
        }
    }
    const double divisor = divisor_of(job, cluster);
    if (divisor == 0) return;
    const auto step = [=](int64_t feature) __attribute__((always_inline)) {
        const T moved = static_cast<T>(sum[feature] / divisor);
        const double difference = moved - centroid[feature];
        centroid[feature] = moved;
        return difference;
    };
    job.sq_steps[cluster] = sum_of_squares(job.n_features, step);
}
