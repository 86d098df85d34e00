// Distances of all rows to a few points. Included like tiles.h, after it.
//
// Features lie in the lanes. With points there, as centroids lie in tiles.h, most lanes would be
// empty. The products of a few rows with a few points fill as many vectors as a vector has lanes.
// Each vector is then added up across its lanes, into one lane of the result.

// Vectors that a row fills. In the last one, packed points hold 0 beyond the row.
template <class T>
int64_t row_vectors(int64_t n_features) {
    return (n_features + Simd<T>::width - 1) / Simd<T>::width;
}

// Packs points vector by vector, and fills their squared lengths. Points of zeros make the number
// of packed points a multiple of the lanes.
template <class T>
void pack_points(const CompareJob<T>& job) {
    constexpr int width = Simd<T>::width;
    const int64_t n_vectors = row_vectors<T>(job.n_features);
    std::fill_n(job.packed, row_vectors<T>(job.k) * width * n_vectors * width, T(0));
    for (int64_t point = 0; point < job.k; ++point) {
        const T* const from = job.centroids + point * job.n_features;
        std::copy_n(from, job.n_features, job.packed + point * n_vectors * width);
        job.c_sq[point] = static_cast<T>(sq_length(from, job.n_features));
    }
}

// The sum across the lanes of each of `n` vectors, side by side in one vector.
template <class T, int n = Simd<T>::width, class V>
INLINE V added_across(const V* vectors, int stride = 1) {
    if constexpr (n == 1) {
        return *vectors;
    } else {
        constexpr int half = Simd<T>::width / n;
        constexpr auto lanes = std::make_index_sequence<Simd<T>::width>{};
        const V even = added_across<T, n / 2>(vectors, 2 * stride);
        const V odd = added_across<T, n / 2>(vectors + stride, 2 * stride);
        return groups<T, half, 0>(even, odd, lanes) + groups<T, half, 1>(even, odd, lanes);
    }
}

// Products of rows `start` to `stop` with `n_points` points from number `first` on, row by row.
// Many features are added up `in_parts`, for the reason given beside `FEATURES_AT_ONCE`.
template <class T, int n_points, bool in_parts>
INLINE void multiply_rows(const CompareJob<T>& job, int64_t start, int64_t stop, int64_t first,
                          T* __restrict out) {
    using S = Simd<T>;
    using Vector = typename S::Vector;
    constexpr int n_rows = S::width / n_points;
    const int64_t n_features = job.n_features, n_whole = n_features / S::width * S::width;
    const int64_t point_elements = row_vectors<T>(n_features) * S::width;
    const T* const points = job.packed + first * point_elements;
    for (int64_t begin = start; begin < stop; begin += n_rows, out += S::width) {
        const T* rows[n_rows];
        for (int row = 0; row < n_rows; ++row) {
            // Spare places hold the last row again.
            rows[row] = job.x + std::min(begin + row, stop - 1) * n_features;
        }
        Vector products[S::width] = {}, totals[S::width];
        if constexpr (in_parts) std::fill_n(totals, S::width, Vector{});
        int64_t part_end = FEATURES_AT_ONCE * S::width;
        const auto multiply = [&](int64_t feature, const Vector(&x)[n_rows])
                                  __attribute__((always_inline)) {
#pragma GCC unroll 16
            for (int point = 0; point < n_points; ++point) {
                const Vector c = S::load(points + point * point_elements + feature);
#pragma GCC unroll 16
                for (int row = 0; row < n_rows; ++row) products[row * n_points + point] += x[row] * c;
            }
        };
        Vector x[n_rows];
        for (int64_t feature = 0; feature < n_whole; feature += S::width) {
#pragma GCC unroll 16
            for (int row = 0; row < n_rows; ++row) {
                x[row] = S::load(rows[row] + feature);
                __builtin_prefetch(rows[row] + feature + PREFETCH_BYTES / sizeof(T));
            }
            multiply(feature, x);
            if (in_parts && feature + S::width == part_end) {
                for (int i = 0; i < S::width; ++i) totals[i] += products[i];
                std::fill_n(products, S::width, Vector{});
                part_end += FEATURES_AT_ONCE * S::width;
            }
        }
        if (n_whole < n_features) {
            for (int row = 0; row < n_rows; ++row) {
                x[row] = S::load_some(rows[row] + n_whole, n_features - n_whole);
            }
            multiply(n_whole, x);
        }
        for (int i = 0; in_parts && i < S::width; ++i) products[i] += totals[i];
        S::store(out, added_across<T>(products));
    }
}

// (Not inlined: beside this variant, compilers make slower code of the other.)
template <class T, int n_points>
__attribute__((noinline)) void multiply_in_parts(const CompareJob<T>& job, int64_t start,
                                                 int64_t stop, int64_t first, T* __restrict out) {
    multiply_rows<T, n_points, true>(job, start, stop, first, out);
}

// Squared distances of rows `start` to `stop`, one part, to `n_points` points from number `first`
// on. `costs`, unless null, gets their sums.
template <class T, int n_points>
INLINE void compare_points(const CompareJob<T>& job, int64_t start, int64_t stop, int64_t first,
                           double* costs) {
    T products[PART_ROWS * n_points];
    if (job.n_features > FEATURES_AT_ONCE * Simd<T>::width) {
        multiply_in_parts<T, n_points>(job, start, stop, first, products);
    } else {
        multiply_rows<T, n_points, false>(job, start, stop, first, products);
    }
    for (int64_t point = first; point < std::min<int64_t>(first + n_points, job.k); ++point) {
        const T* const of_point = products + point - first;
        const T* __restrict const sq_norms = job.sq_norms + start;
        T* __restrict const out = job.sq_distances + point * job.n_rows + start;
        const T length = job.c_sq[point];
        for (int64_t row = 0; row < stop - start; ++row) {
            const T sq_distance = sq_norms[row] + (length - 2 * of_point[row * n_points]);
            out[row] = sq_distance > 0 ? sq_distance : T(0);
        }
        const T* const from = job.centroids + point * job.n_features;
        const auto cancels = [=, &job](int64_t row) __attribute__((always_inline)) {
            return out[row] < job.cancels * (sq_norms[row] + length);
        };
        int32_t n_cancelled = 0;
        for (int64_t row = 0; row < stop - start; ++row) n_cancelled += cancels(row);
        for (int64_t row = 0; n_cancelled > 0 && row < stop - start; ++row) {
            if (!cancels(row)) continue;
            const T* const x = job.x + (start + row) * job.n_features;
            out[row] = static_cast<T>(sq_difference(x, from, job.n_features));
        }
        if (job.own && job.own[point] >= start && job.own[point] < stop) {
            out[job.own[point] - start] = 0;
        }
        if (costs == nullptr) continue;
        const T* __restrict const closest = job.closest + start;
        const double* const weights = job.weights ? job.weights + start : nullptr;
        const auto nearer = [=](int64_t row) __attribute__((always_inline)) {
            return static_cast<double>(out[row] = std::min(out[row], closest[row]));
        };
        const auto weighted = [=](int64_t row) __attribute__((always_inline)) {
            return nearer(row) * weights[row];
        };
        costs[point] = job.weights ? sum_of(stop - start, weighted) : sum_of(stop - start, nearer);
    }
}

// The same for all points.
template <class T>
void compare_block(const CompareJob<T>& job, int64_t start, int64_t stop, double* costs) {
    constexpr int most = Simd<T>::width, half = std::max(most / 2, 1), few = std::max(most / 4, 1);
    for (int64_t first = 0; first < job.k; first += most) {
        if (job.k - first > half) {
            compare_points<T, most>(job, start, stop, first, costs);
        } else if (job.k - first > few) {
            compare_points<T, half>(job, start, stop, first, costs);
        } else {
            compare_points<T, few>(job, start, stop, first, costs);
        }
    }
}
