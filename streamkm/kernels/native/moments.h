// Moments of features, for one instruction set. Included like tiles.h.

// Whether all numbers are finite: NaN or infinity times 0 is NaN, and anything else 0.
template <class Stored>
INLINE bool are_finite(const Stored* __restrict x, int64_t n) {
    if constexpr (std::is_integral_v<Stored>) return true;
    constexpr int LANES = 32;
    float sums[LANES] = {};
    const auto zero = [x](int64_t i) __attribute__((always_inline)) {
        // (A float64 may be too large for float32; its difference from itself is not.)
        if constexpr (std::is_same_v<Stored, double>) {
            return static_cast<float>(x[i] - x[i]);
        } else {
            return static_cast<float>(x[i]) * 0;
        }
    };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) sums[lane] += zero(i + lane);
    }
    for (int lane = 0; i < n; ++i, ++lane) sums[lane] += zero(i);
    return std::accumulate(sums, sums + LANES, 0.0f) == 0;
}

// Numbers of a strip. Rows of few features are taken several at a time, as if they were one row.
INLINE int64_t strip_width(int64_t n_features) {
    constexpr int64_t LEAST = 64;
    return (LEAST + n_features - 1) / n_features * n_features;
}

// Whether every row of a part counts 1. If not, fills `job.counted` with what each counts.
template <class Stored>
INLINE bool count_rows(const MomentsJob& job, int64_t start, int64_t stop, const Moments& found) {
    const Stored* const x = static_cast<const Stored*>(job.x);
    *found.n_dropped = 0;
    if (!job.weights && are_finite(x + start * job.n_features, (stop - start) * job.n_features)) {
        *found.count = stop - start;
        return true;
    }
    *found.count = 0;
    for (int64_t row = start; row < stop; ++row) {
        const bool is_finite = are_finite(x + row * job.n_features, job.n_features);
        const double weight = job.weights ? std::max(job.weights[row], 0.0) : 1;
        *found.n_dropped += !is_finite;
        job.counted[row] = is_finite ? weight : 0;
        *found.count += job.counted[row];
    }
    return false;
}

// Moments of the rows of one part, in order, into `found`.
template <class Stored>
void measure_part(const MomentsJob& job, int64_t start, int64_t stop, const Moments& found) {
    const int64_t n_features = job.n_features, width = strip_width(n_features);
    const Stored* const x = static_cast<const Stored*>(job.x) + start * n_features;
    const int64_t n_numbers = (stop - start) * n_features;
    const bool all_count = count_rows<Stored>(job, start, stop, found);
    // Calls `use(numbers, n, weight)` for one strip after the other.
    const auto for_each_strip = [&](const auto& use) __attribute__((always_inline)) {
        for (int64_t first = 0; all_count && first < n_numbers; first += width) {
            use(x + first, std::min(width, n_numbers - first), 1.0);
        }
        for (int64_t row = start; !all_count && row < stop; ++row) {
            if (job.counted[row] > 0) {
                use(x + (row - start) * n_features, n_features, job.counted[row]);
            }
        }
    };
    double* __restrict const sums = found.strips;
    double* __restrict const least = sums + width;
    double* __restrict const greatest = least + width;
    double* __restrict const means = greatest + width;
    std::fill_n(sums, width, 0.0);
    std::fill_n(least, width, std::numeric_limits<double>::infinity());
    std::fill_n(greatest, width, -std::numeric_limits<double>::infinity());
    for_each_strip([=](const Stored* __restrict strip, int64_t n, double weight)
                       __attribute__((always_inline)) {
        for (int64_t i = 0; i < n; ++i) {
            const double number = static_cast<double>(strip[i]);
            sums[i] += weight * number;
            least[i] = number < least[i] ? number : least[i];
            greatest[i] = number > greatest[i] ? number : greatest[i];
        }
    });
    for (int64_t i = n_features; i < width; ++i) {
        const int64_t feature = i % n_features;
        sums[feature] += sums[i];
        least[feature] = std::min(least[feature], least[i]);
        greatest[feature] = std::max(greatest[feature], greatest[i]);
    }
    for (int64_t i = 0; i < width; ++i) {
        means[i] = *found.count > 0 ? sums[i % n_features] / *found.count : 0;
    }
    std::copy_n(means, n_features, found.mean);
    std::copy_n(least, n_features, found.least);
    std::copy_n(greatest, n_features, found.greatest);
    std::fill_n(sums, width, 0.0);
    for_each_strip([=](const Stored* __restrict strip, int64_t n, double weight)
                       __attribute__((always_inline)) {
        for (int64_t i = 0; i < n; ++i) {
            const double deviation = static_cast<double>(strip[i]) - means[i];
            sums[i] += weight * (deviation * deviation);
        }
    });
    for (int64_t i = n_features; i < width; ++i) sums[i % n_features] += sums[i];
    std::copy_n(sums, n_features, found.m2);
}
