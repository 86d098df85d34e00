// Arithmetic on tiles of rows and centroids, for one instruction set.
//
// Included once for each by module.cpp, within a namespace of its own, with VECTOR_BYTES
// and TILE_ROWS defined. The vectors are an extension that GCC and Clang share, so that one
// text serves every instruction set and the compiler keeps a tile of scores in registers.

template <class T>
struct Simd {
    static constexpr int width = VECTOR_BYTES / sizeof(T);
    // As wide as T, so that comparing two vectors of T selects among these too.
    using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    typedef T Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef Index IndexVector __attribute__((vector_size(VECTOR_BYTES)));

    static INLINE Vector load(const T* from) {
        Vector value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    static INLINE void store(T* to, const Vector& value) { std::memcpy(to, &value, sizeof value); }
};

// Two vectors of centroids are scored at once: with TILE_ROWS rows their sums fill the
// registers, and there are enough of them to hide how long an addition takes.
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

// The least and the second least score of each lane, and where the least was.
template <class T>
struct Best {
    typename Simd<T>::Vector first, second;
    typename Simd<T>::IndexVector index;

    INLINE void clear() {
        first = second = typename Simd<T>::Vector{} + std::numeric_limits<T>::infinity();
        index = typename Simd<T>::IndexVector{};
    }

    // A score that is NaN is less than none, and so passed over.
    INLINE void offer(const typename Simd<T>::Vector& score,
                      const typename Simd<T>::IndexVector& where) {
        const auto better = score < first;
        const auto loser = better ? first : score;
        second = loser < second ? loser : second;
        first = better ? score : first;
        index = better ? where : index;
    }
};

// Halves of a vector of 2 * bytes are offered to each other, down to one lane.
template <class T, int bytes>
struct Lanes {
    using Index = typename Simd<T>::Index;
    typedef T Vector __attribute__((vector_size(bytes)));
    typedef Index IndexVector __attribute__((vector_size(bytes)));

    static INLINE void reduce(const void* firsts, const void* seconds, const void* indices,
                              T* first, T* second, int64_t* index) {
        const auto [mine, other] = halves<Vector>(firsts);
        const auto [my_second, others_second] = halves<Vector>(seconds);
        const auto [my_index, others_index] = halves<IndexVector>(indices);
        const auto better = other < mine;
        const Vector loser = better ? mine : other;
        const Vector winner = better ? other : mine;
        const IndexVector where = better ? others_index : my_index;
        Vector runner_up = others_second < my_second ? others_second : my_second;
        runner_up = loser < runner_up ? loser : runner_up;
        if constexpr (bytes > static_cast<int>(sizeof(T))) {
            Lanes<T, bytes / 2>::reduce(&winner, &runner_up, &where, first, second, index);
        } else {
            *first = winner[0];
            *second = runner_up[0];
            *index = where[0];
        }
    }

    template <class V>
    static INLINE std::pair<V, V> halves(const void* whole) {
        V low, high;
        std::memcpy(&low, whole, bytes);
        std::memcpy(&high, static_cast<const char*>(whole) + bytes, bytes);
        return {low, high};
    }
};

// Rows that are needed next and may lie anywhere, which no processor guesses. They are asked for
// line by line while others are scored: all at once they would fill the places for what is under way
// from memory, and the scores wait for theirs.
template <class T>
struct Upcoming {
    static constexpr int64_t LINE = 64 / sizeof(T);
    const T* rows[TILE_ROWS];
    int n = 0;

    INLINE void ask_for(int64_t feature) const {
        // (For the nearest cache: asked for in the second level, nothing came on Zen 5.)
        for (int row = 0; row < n; ++row) __builtin_prefetch(rows[row] + feature);
    }
};

// The scores |c|^2 - 2 x.c of TILE_ROWS rows against one panel of centroids, whose
// features lie together: panel[feature][lane]. Each score is summed feature by feature, so
// that it does not depend on the tile in which it is computed; and in parts, so that where
// all products are alike, and all rounded the same way, the error stays within the bound
// that `rounding` gives: of n additions in sequence it is n / 4 units of (|x| + |c|)^2.
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

// Packs the centroids of one panel; a lane without one scores infinity.
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

// By how much a score may lie above the best and yet be the nearest centroid's. No centroid
// longer than the row and its least distance together can be the nearest, so that one far
// away does not make every row uncertain. (A tenth more: the least score is rounded itself.)
template <class T>
INLINE T slack(const AssignJob<T>& job, T sq_norm, T sq_distance) {
    const T norm = std::sqrt(sq_norm);
    const T reach = norm + std::sqrt(sq_distance);
    const T longest_sq = std::min(reach * reach * T(1.1), job.longest_sq);
    const T extent = norm + std::sqrt(longest_sq);
    // Below the normal numbers rounding is no share of anything any more.
    const T vanished = 4 * static_cast<T>(job.n_features) * std::numeric_limits<T>::min();
    return 2 * job.rounding * extent * extent + vanished;
}

// Squares of a row are added up in so many sums, whatever the instruction set.
constexpr int NORM_LANES = 16;

// Sum of the squares of what `element` gives for every feature.
template <class Element>
INLINE double sum_of_squares(int64_t n_features, const Element& element) {
    double sum = 0;
    int64_t feature = 0;
    if (n_features >= NORM_LANES) {
        double sums[NORM_LANES] = {};
        for (; feature + NORM_LANES <= n_features; feature += NORM_LANES) {
            for (int lane = 0; lane < NORM_LANES; ++lane) {
                const double value = element(feature + lane);
                sums[lane] += value * value;
            }
        }
        for (int lane = 0; lane < NORM_LANES; ++lane) sum += sums[lane];
    }
    for (; feature < n_features; ++feature) {
        const double value = element(feature);
        sum += value * value;
    }
    return sum;
}

template <class T>
INLINE double sq_length(const T* x, int64_t n_features) {
    return sum_of_squares(n_features, [x](int64_t feature) __attribute__((always_inline)) {
        return static_cast<double>(x[feature]);
    });
}

// Where the rows of a tile lie; what is not known of them yet is found out.
template <class T>
INLINE void locate_tile(const AssignJob<T>& job, int64_t tile, int64_t stop, const T** located) {
    const int64_t end = std::min(tile + TILE_ROWS, stop);
    for (int64_t row = tile; row < end; ++row) {
        if (job.dropped) {
            job.dropped[row] = false;
            const T sq_norm = static_cast<T>(sq_length(job.row(row), job.n_features));
            job.dropped[row] = !(sq_norm <= job.most_sq_norm);  // Nor NaN.
            job.sq_norms[row] = job.dropped[row] ? T(0) : sq_norm;
        }
        located[row - tile] = job.row(row);
    }
}

// So far ahead a row is asked for: short ones sooner, they are needed sooner.
constexpr int64_t PREFETCH_BYTES = 4096, MOST_TILES_AHEAD = 8;

// Of a tile ahead, the rows whose turn it is while panel `number` of `n` is scored.
template <class T>
INLINE Upcoming<T> upcoming_rows(const AssignJob<T>& job, int64_t tile, int64_t number, int64_t n) {
    Upcoming<T> upcoming;
    // Short rows that follow each other are what a processor does guess.
    if (!job.positions && job.n_features < Upcoming<T>::LINE) return upcoming;
    const int64_t tile_bytes = TILE_ROWS * job.n_features * static_cast<int64_t>(sizeof(T));
    const int64_t ahead =
        TILE_ROWS * std::clamp<int64_t>(PREFETCH_BYTES / tile_bytes, 1, MOST_TILES_AHEAD);
    const int64_t end = (number + 1) * TILE_ROWS / n;
    for (int64_t row = number * TILE_ROWS / n; row < end; ++row) {
        const int64_t next = std::min(tile + ahead + row, job.n_rows - 1);
        upcoming.rows[upcoming.n++] =
            job.x + (job.positions ? job.positions[next] : next) * job.n_features;
    }
    return upcoming;
}

// Labels, distances and doubts of rows `start` to `stop`, BLOCK_ROWS at most; returns in how
// many cases there is doubt.
template <class T>
int64_t assign_block(const AssignJob<T>& job, int64_t start, int64_t stop) {
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
                // The last tile scores the last row again in the places that are left.
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
                    // Half of the last panel would be lanes without a centroid.
                    score_tile<T, 1>(rows, job.n_features, packed, c_sq, upcoming, panel * width,
                                     of_tile);
                } else {
                    score_tile<T, PANEL_VECTORS>(rows, job.n_features, packed, c_sq, upcoming,
                                                 panel * width, of_tile);
                }
            }
        }
    }
    T firsts[BLOCK_ROWS], seconds[BLOCK_ROWS];
    for (int64_t row = start; row < stop; ++row) {
        const Best<T>& one = best[row - start];
        Lanes<T, VECTOR_BYTES / 2>::reduce(&one.first, &one.second, &one.index,
                                           &firsts[row - start], &seconds[row - start],
                                           &job.labels[row]);
    }
    int64_t n_uncertain = 0;
    for (int64_t row = start; row < stop; ++row) {
        const T score = firsts[row - start], sq_norm = job.sq_norms[row];
        const T sq_distance = score + sq_norm > 0 ? score + sq_norm : T(0);
        // Not <=: where a score is NaN or infinite nothing is certain.
        const bool is_uncertain =
            !(seconds[row - start] > score + slack(job, sq_norm, sq_distance));
        job.sq_distances[row] = sq_distance;
        job.uncertain[row] = is_uncertain;
        if (job.second_sq_distances) {
            const T second = seconds[row - start] + sq_norm;
            job.second_sq_distances[row] = second > 0 ? second : T(0);
        }
        n_uncertain += is_uncertain;
    }
    return n_uncertain;
}

// Squared distances of rows `start` to `stop` to a few points, all of them, point by point.
template <class T>
void compare_block(const AssignJob<T>& job, int64_t start, int64_t stop) {
    constexpr int width = panel_width<T>();
    for (int64_t panel = 0; panel < n_panels<T>(job.k); ++panel) {
        const T* const packed = job.packed + panel * width * job.n_features;
        const T* const c_sq = job.c_sq + panel * width;
        const int64_t n_points = std::min<int64_t>(job.k - panel * width, width);
        T* const out = job.sq_distances + panel * width * job.n_rows;
        for (int64_t tile = start; tile < stop; tile += TILE_ROWS) {
            const T* rows[TILE_ROWS];
            for (int row = 0; row < TILE_ROWS; ++row) {
                rows[row] = job.x + std::min(tile + row, stop - 1) * job.n_features;
            }
            Scores<T, PANEL_VECTORS> scores;
            if (n_points <= Simd<T>::width) {
                Scores<T, 1> half;
                half.compute(rows, job.n_features, packed, c_sq, {});
                for (int row = 0; row < TILE_ROWS; ++row) {
                    scores.of_rows[row][0] = half.of_rows[row][0];
                }
            } else {
                scores.compute(rows, job.n_features, packed, c_sq, {});
            }
            const int n_rows = static_cast<int>(std::min<int64_t>(stop - tile, TILE_ROWS));
            for (int64_t point = 0; point < n_points; ++point) {
                for (int row = 0; row < n_rows; ++row) {
                    const T score = scores.of_rows[row][point / Simd<T>::width][point % Simd<T>::width];
                    const T sq_distance = score + job.sq_norms[tile + row];
                    out[point * job.n_rows + tile + row] = sq_distance > 0 ? sq_distance : T(0);
                }
            }
        }
    }
}
