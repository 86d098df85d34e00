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

// Offers the scores |c|^2 - 2 x.c of TILE_ROWS rows against one panel of centroids, whose
// features lie together: panel[feature][lane]. Each score is summed feature by feature, so
// that it does not depend on the tile in which it is computed; and in parts, so that where
// all products are alike, and all rounded the same way, the error stays within the bound
// that `rounding` gives: of n additions in sequence it is n / 4 units of (|x| + |c|)^2.
constexpr int64_t FEATURES_AT_ONCE = 128;

template <class T, int n_vectors>
INLINE void score_tile(const T* const (&rows)[TILE_ROWS], int64_t n_features, const T* panel,
                       const T* c_sq, int64_t first_index, Best<T>* best) {
    using S = Simd<T>;
    typename S::Vector totals[TILE_ROWS][n_vectors] = {};
    for (int64_t begin = 0; begin < n_features; begin += FEATURES_AT_ONCE) {
        const int64_t end = std::min(begin + FEATURES_AT_ONCE, n_features);
        typename S::Vector products[TILE_ROWS][n_vectors] = {};
        for (int64_t feature = begin; feature < end; ++feature, panel += panel_width<T>()) {
            typename S::Vector centroids[n_vectors];
#pragma GCC unroll 4
            for (int v = 0; v < n_vectors; ++v) centroids[v] = S::load(panel + v * S::width);
#pragma GCC unroll 16
            for (int row = 0; row < TILE_ROWS; ++row) {
                const T x = rows[row][feature];
#pragma GCC unroll 4
                for (int v = 0; v < n_vectors; ++v) products[row][v] += centroids[v] * x;
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
        typename S::IndexVector where;
        for (int lane = 0; lane < S::width; ++lane) {
            where[lane] = static_cast<typename S::Index>(first_index + v * S::width + lane);
        }
#pragma GCC unroll 16
        for (int row = 0; row < TILE_ROWS; ++row) {
            best[row].offer(length - 2 * totals[row][v], where);
        }
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

// Labels, distances and doubts of rows `start` to `stop`, BLOCK_ROWS at most; returns in how
// many cases there is doubt.
template <class T>
int64_t assign_block(const AssignJob<T>& job, int64_t start, int64_t stop) {
    constexpr int width = panel_width<T>();
    const int64_t panel_elements = width * job.n_features;
    const int64_t group = std::max<int64_t>(GROUP_BYTES / (panel_elements * sizeof(T)), 1);
    const int64_t end = n_panels<T>(job.k);
    Best<T> best[BLOCK_ROWS];
    for (Best<T>& one : best) one.clear();
    for (int64_t first = 0; first < end; first += group) {
        for (int64_t tile = start; tile < stop; tile += TILE_ROWS) {
            const T* rows[TILE_ROWS];
            for (int row = 0; row < TILE_ROWS; ++row) {
                // The last tile scores the last row again in the places that are left.
                rows[row] = job.x + std::min(tile + row, stop - 1) * job.n_features;
            }
            for (int64_t panel = first; panel < std::min(first + group, end); ++panel) {
                const T* packed = job.packed + panel * panel_elements;
                const T* c_sq = job.c_sq + panel * width;
                Best<T>* of_tile = best + (tile - start);
                if (job.k - panel * width <= Simd<T>::width) {
                    // Half of the last panel would be lanes without a centroid.
                    score_tile<T, 1>(rows, job.n_features, packed, c_sq, panel * width, of_tile);
                } else {
                    score_tile<T, PANEL_VECTORS>(rows, job.n_features, packed, c_sq, panel * width,
                                                 of_tile);
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

// Squared distance of two points, as the sum of squared differences.
template <class T>
INLINE double sq_difference(const T* a, const T* b, int64_t n_features) {
    return sum_of_squares(n_features, [a, b](int64_t feature) __attribute__((always_inline)) {
        return static_cast<double>(a[feature]) - static_cast<double>(b[feature]);
    });
}

// Sum of the products of two vectors, in parts for the same reason as a tile's.
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

// The true label and distance of a row that screening left in doubt. Centroids whose score is not
// certainly above that of its label are compared by sums of squared differences in double
// precision, in which nothing cancels; the lowest index wins a tie.
template <class T>
void recheck_row(const AssignJob<T>& job, int64_t row) {
    const T* const x = job.x + row * job.n_features;
    const auto score = [&](int64_t cluster) __attribute__((always_inline)) {
        return job.c_sq[cluster] -
               2 * dot(x, job.centroids + cluster * job.n_features, job.n_features);
    };
    const T limit = score(job.labels[row]) + slack(job, job.sq_norms[row], job.sq_distances[row]);
    double least = std::numeric_limits<double>::infinity();
    for (int64_t cluster = 0; cluster < job.k; ++cluster) {
        if (score(cluster) > limit) continue;  // A score that is NaN says nothing.
        const double sq_distance = sq_difference(x, job.centroids + cluster * job.n_features,
                                                 job.n_features);
        if (sq_distance < least) {
            least = sq_distance;
            job.labels[row] = cluster;
            job.sq_distances[row] = static_cast<T>(least);
        }
    }
}

// So many rows of a cluster are added up before they are added to its sum: of a thousand equal
// rows in sequence the last additions would each lose the same digits.
constexpr int ROWS_AT_ONCE = 32;

// Adds the rows of one cluster, in their order, to columns `column` to `stop` of its sum.
template <class T>
INLINE void accumulate_cluster(const AccumulateJob<T>& job, int64_t cluster, int64_t column,
                               int64_t stop) {
    using S = Simd<T>;
    constexpr int N_VECTORS = 4;
    const int32_t* const first = job.rows + job.offsets[cluster];
    const int32_t* const last = job.rows + job.offsets[cluster + 1];
    T* const sums = job.sums + cluster * job.n_features;
    for (; column + N_VECTORS * S::width <= stop; column += N_VECTORS * S::width) {
        typename S::Vector held[N_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < N_VECTORS; ++v) held[v] = S::load(sums + column + v * S::width);
        for (const int32_t* begin = first; begin < last; begin += ROWS_AT_ONCE) {
            const int32_t* const end = last - begin > ROWS_AT_ONCE ? begin + ROWS_AT_ONCE : last;
            typename S::Vector part[N_VECTORS] = {};
            for (const int32_t* row = begin; row < end; ++row) {
                const T* x = job.x + *row * job.n_features + column;
#pragma GCC unroll 4
                for (int v = 0; v < N_VECTORS; ++v) part[v] += S::load(x + v * S::width);
            }
#pragma GCC unroll 4
            for (int v = 0; v < N_VECTORS; ++v) held[v] += part[v];
        }
#pragma GCC unroll 4
        for (int v = 0; v < N_VECTORS; ++v) S::store(sums + column + v * S::width, held[v]);
    }
    constexpr int64_t REST = N_VECTORS * S::width;
    for (const int32_t* begin = first; column < stop && begin < last; begin += ROWS_AT_ONCE) {
        const int32_t* const end = last - begin > ROWS_AT_ONCE ? begin + ROWS_AT_ONCE : last;
        T part[REST] = {};
        for (const int32_t* row = begin; row < end; ++row) {
            const T* x = job.x + *row * job.n_features + column;
            for (int64_t i = 0; i < stop - column; ++i) part[i] += x[i];
        }
        for (int64_t i = 0; i < stop - column; ++i) sums[column + i] += part[i];
    }
}

// So far ahead a row is asked for: rows lie anywhere in the window, which no processor guesses.
constexpr int64_t PREFETCH_BYTES = 4096, PREFETCH_ROWS = 32;
// Three plain loops, each of which compilers turn into vectors, whatever the dtype.
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
    const int64_t ahead = std::clamp<int64_t>(PREFETCH_BYTES / row_bytes, 1, PREFETCH_ROWS);
    for (int64_t row = start; row < stop; ++row) {
        if (job.rows != nullptr && row + ahead < job.n_rows) {
            const char* next = reinterpret_cast<const char*>(
                window + job.rows[row + ahead] * job.n_features);
            for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(next + byte);
        }
        T* const x = job.x + row * job.n_features;
        const int64_t position = job.rows == nullptr ? row : job.rows[row];
        const Stored* const from = window + position * job.n_features;
        // A row that is used where it lies is only measured.
        if (static_cast<const void*>(from) != x) widen_row(from, x, job.n_features);
        if (job.shift != nullptr) scale_row(x, job.shift, job.factor, job.n_features);
        const auto element = [x](int64_t feature) __attribute__((always_inline)) { return static_cast<double>(x[feature]); };
        job.sq_norms[row] = static_cast<T>(sum_of_squares(job.n_features, element));
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

// What the sum of a cluster is divided by. A direction is taken in two steps, since the square
// of a small sum would vanish; 0 where there is none.
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
