// Screening of rows of few features, for one instruction set; included as tiles.h is, and after it.
//
// The rows lie in the lanes of vectors, and the centroids come one after the other: so little is
// multiplied for a score that what follows, least scores across lanes above all, would be most
// of the work if centroids lay in the lanes. Scores are the same bits either way.

// Beyond so many features turning rows into columns costs more than it saves.
constexpr int64_t MOST_FEATURES_OF_COLUMNS = 16;

// Vectors of rows, and centroids, that are scored at once: as many as fill the registers.
constexpr int COLUMN_VECTORS = 2, COLUMN_CENTROIDS = TILE_ROWS * 2 / 3;

// So far ahead a row is asked for, where rows may lie anywhere.
constexpr int64_t COLUMN_ROWS_AHEAD = 64;

template <class T>
constexpr int column_rows() {
    return COLUMN_VECTORS * Simd<T>::width;
}

// Offers `n_centroids` centroids from number `first` on to the rows in `columns`, feature after
// feature.
template <class T, int n_centroids>
INLINE void offer_centroids(const AssignJob<T>& job, const T* columns, int64_t first,
                            Best<T> (&best)[COLUMN_VECTORS]) {
    using S = Simd<T>;
    const int64_t n_features = job.n_features;
    const T* const centroids = job.centroids + first * n_features;
    typename S::Vector products[n_centroids][COLUMN_VECTORS] = {};
    for (int64_t feature = 0; feature < n_features; ++feature) {
        typename S::Vector x[COLUMN_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < COLUMN_VECTORS; ++v) {
            x[v] = S::load(columns + feature * column_rows<T>() + v * S::width);
        }
#pragma GCC unroll 8
        for (int c = 0; c < n_centroids; ++c) {
            const T value = centroids[c * n_features + feature];
#pragma GCC unroll 8
            for (int v = 0; v < COLUMN_VECTORS; ++v) products[c][v] += x[v] * value;
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < n_centroids; ++c) {
        const auto where = typename S::IndexVector{} + static_cast<typename S::Index>(first + c);
        const T length = job.c_sq[first + c];
#pragma GCC unroll 8
        for (int v = 0; v < COLUMN_VECTORS; ++v) best[v].offer(length - 2 * products[c][v], where);
    }
}

// Squared lengths of rows `begin` to `end` in `columns`; rows that are dropped become zeros there.
template <class T>
INLINE void measure_columns(const AssignJob<T>& job, int64_t begin, int64_t end, T* columns) {
    double sums[column_rows<T>()] = {};
    if constexpr (std::is_same_v<T, float>) {
        // In the order in which `sq_length` adds up so few. Squares are exact in a double.
        for (int64_t feature = 0; feature < job.n_features; ++feature) {
            for (int lane = 0; lane < column_rows<T>(); ++lane) {
                const double value = columns[feature * column_rows<T>() + lane];
                sums[lane] += value * value;
            }
        }
    } else {
        // Whether squares are rounded before they are added is the compiler's choice: its bits are its own.
        for (int64_t row = begin; row < end; ++row) {
            sums[row - begin] = sq_length(job.given(row), job.n_features);
        }
    }
    for (int64_t row = begin; row < end; ++row) {
        const T sq_norm = static_cast<T>(sums[row - begin]);
        job.dropped[row] = !(sq_norm <= job.most_sq_norm);  // Nor NaN.
        job.sq_norms[row] = job.dropped[row] ? T(0) : sq_norm;
        for (int64_t feature = 0; job.dropped[row] && feature < job.n_features; ++feature) {
            columns[feature * column_rows<T>() + row - begin] = 0;
        }
    }
}

template <class T>
INLINE void screen_columns(const AssignJob<T>& job, int64_t start, int64_t stop,
                           Screened<T>& screened) {
    static_assert(BLOCK_ROWS % column_rows<T>() == 0, "a block is a whole number of columns");
    T columns[MOST_FEATURES_OF_COLUMNS * column_rows<T>()];
    for (int64_t begin = start; begin < stop; begin += column_rows<T>()) {
        const int64_t end = std::min(begin + column_rows<T>(), stop);
        for (int64_t lane = 0; lane < column_rows<T>(); ++lane) {
            // The last columns hold the last row again in the lanes that are left.
            const int64_t row = std::min(begin + lane, stop - 1);
            const T* const x = job.given(row);
            if (job.positions) {
                __builtin_prefetch(job.given(std::min(row + COLUMN_ROWS_AHEAD, job.n_rows - 1)));
            }
            for (int64_t feature = 0; feature < job.n_features; ++feature) {
                columns[feature * column_rows<T>() + lane] = x[feature];
            }
        }
        if (job.dropped) measure_columns(job, begin, end, columns);
        Best<T> best[COLUMN_VECTORS];
        for (Best<T>& one : best) one.clear();
        int64_t first = 0;
        for (; first + COLUMN_CENTROIDS <= job.k; first += COLUMN_CENTROIDS) {
            offer_centroids<T, COLUMN_CENTROIDS>(job, columns, first, best);
        }
        for (; first < job.k; ++first) offer_centroids<T, 1>(job, columns, first, best);
        for (int v = 0; v < COLUMN_VECTORS; ++v) {
            screened.keep(begin - start + v * Simd<T>::width, best[v]);
        }
    }
}
