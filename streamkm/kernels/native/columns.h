// Screening of rows of few features, for one instruction set. Included like tiles.h, after it.
//
// Rows lie in the lanes of vectors, and centroids come one after the other. A score of few features
// takes few products: with centroids in the lanes, finding the least score across lanes would be
// most of the work. Scores are the same bits either way.

// With more features, turning rows into columns costs more than it saves. And squares are summed feature
// by feature, which is the order of `sq_length` for as many.
constexpr int64_t MOST_FEATURES_OF_COLUMNS = 2 * SUM_LANES - 1;

// Vectors of rows, and centroids, that are scored at once: together they fill the registers.
constexpr int COLUMN_VECTORS = 2, COLUMN_CENTROIDS = TILE_ROWS * 2 / 3;

// How many rows ahead a row is prefetched, where rows may lie anywhere.
constexpr int64_t COLUMN_ROWS_AHEAD = 64;

template <class T>
constexpr int column_rows() {
    return COLUMN_VECTORS * Simd<T>::width;
}

// Scores `n_centroids` centroids, from number `first` on, against the rows in `columns`, and offers
// the scores to `best`. Columns lie feature after feature.
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

// Turns `column_rows` rows into `columns`, a vector of features of as many rows at a time. The last vector
// ends where the rows do: features that it shares with the one before are filled twice.
template <class T>
INLINE void fill_columns(const T* const* rows, int64_t n_features, T* columns) {
    using S = Simd<T>;
    if (n_features < S::width) {
        for (int64_t lane = 0; lane < column_rows<T>(); ++lane) {
            for (int64_t feature = 0; feature < n_features; ++feature) {
                columns[feature * column_rows<T>() + lane] = rows[lane][feature];
            }
        }
        return;
    }
    for (int64_t next = 0; next < n_features; next += S::width) {
        const int64_t feature = std::min(next, n_features - S::width);
        for (int v = 0; v < COLUMN_VECTORS; ++v) {
            typename S::Vector square[S::width];
#pragma GCC unroll 16
            for (int row = 0; row < S::width; ++row) square[row] = S::load(rows[v * S::width + row] + feature);
            transpose<T>(square);
#pragma GCC unroll 16
            for (int i = 0; i < S::width; ++i) {
                S::store(columns + (feature + i) * column_rows<T>() + v * S::width, square[i]);
            }
        }
    }
}

// Fills the squared lengths of rows `begin` to `end`, which lie in `columns`, and which of them are
// dropped. Dropped rows become zeros in `columns`.
template <class T>
INLINE void measure_columns(const AssignJob<T>& job, int64_t begin, int64_t end, T* columns) {
    double sums[column_rows<T>()] = {};
    if constexpr (std::is_same_v<T, float>) {
        // In the order of `sq_length` for this few features. A float's square is exact in a double.
        for (int64_t feature = 0; feature < job.n_features; ++feature) {
            for (int lane = 0; lane < column_rows<T>(); ++lane) {
                const double value = columns[feature * column_rows<T>() + lane];
                sums[lane] += value * value;
            }
        }
    } else {
        // A compiler may or may not round squares before adding: only `sq_length` gives its bits.
        for (int64_t row = begin; row < end; ++row) {
            sums[row - begin] = sq_length(job.given(row), job.n_features);
        }
    }
    for (int64_t row = begin; row < end; ++row) {
        const T sq_norm = static_cast<T>(sums[row - begin]);
        job.dropped[row] = !(sq_norm <= job.most_sq_norm);  // NaN too.
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
        const T* rows[column_rows<T>()];
        for (int64_t lane = 0; lane < column_rows<T>(); ++lane) {
            // Spare lanes of the last columns hold the last row again.
            const int64_t row = std::min(begin + lane, stop - 1);
            rows[lane] = job.given(row);
            if (job.positions) {
                __builtin_prefetch(job.given(std::min(row + COLUMN_ROWS_AHEAD, job.n_rows - 1)));
            }
        }
        fill_columns(rows, job.n_features, columns);
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
