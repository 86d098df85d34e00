// Labels and doubts from the scores of a block of rows. Included like tiles.h, after columns.h.

// How far above the least score, given rounding, the nearest centroid's score may lie. No centroid
// longer than the row plus its least distance can be the nearest, so one far away does not make
// every row uncertain. (The factor 1.1 is there because the least score is rounded too.)
template <class T>
INLINE T slack(const AssignJob<T>& job, T sq_norm, T sq_distance) {
    const T norm = std::sqrt(sq_norm);
    const T reach = norm + std::sqrt(sq_distance);
    const T longest_sq = std::min(reach * reach * T(1.1), job.longest_sq);
    const T extent = norm + std::sqrt(longest_sq);
    // Among subnormal numbers a rounding error is no share of a number.
    const T vanished = 4 * static_cast<T>(job.n_features) * std::numeric_limits<T>::min();
    return 2 * job.rounding * extent * extent + vanished;
}

// A bound on distances from one on their squares, with room for the rounding of a few operations. What
// is too small for that, or overflowed, is 0, which says nothing.
INLINE float low_of(double sq_low) {
    constexpr double LEAST = 1e-60, MOST = std::numeric_limits<float>::max();
    if (!(sq_low > LEAST && sq_low <= std::numeric_limits<double>::max())) return 0;  // A NaN too.
    return static_cast<float>(std::min(std::sqrt(sq_low) * (1 - 0x1p-20), MOST));
}

// Fills how near centroids other than that of the label may be. Unlike `slack` this is a bound that
// holds however errors of rounding add up: that of a product, of a sum in parts of FEATURES_AT_ONCE,
// and of the few operations after it. Of a row in doubt any centroid may score least.
template <class T>
INLINE void fill_lows(const AssignJob<T>& job, int64_t start, int64_t n, const T* firsts, const T* seconds) {
    const int64_t n_roundings = std::min(job.n_features, FEATURES_AT_ONCE) + parts_of(job.n_features, FEATURES_AT_ONCE) + 8;
    const double share = static_cast<double>(n_roundings) * std::numeric_limits<T>::epsilon() / 2;
    const double vanished = 4.0 * static_cast<double>(job.n_features) * std::numeric_limits<T>::min();
    const double longest = std::sqrt(static_cast<double>(job.longest_sq));
    if (!(longest <= std::numeric_limits<double>::max())) {
        std::fill_n(job.lows + start, n, 0.0f);  // Scores may have overflowed.
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        const double score = job.uncertain[start + i] ? firsts[i] : seconds[i];
        const double sq_norm = job.sq_norms[start + i], norm = std::sqrt(sq_norm);
        const double sq_distance = std::max(score + sq_norm, 0.0);
        // A centroid that is longer than this is farther than the bound anyway.
        const double reach = std::min((norm + std::sqrt(sq_distance)) * 1.1, longest);
        job.lows[start + i] = low_of(sq_distance - share * (norm + reach) * (norm + reach) - vanished);
    }
}

// Fills labels, distances and doubts of rows `start` to `stop`, BLOCK_ROWS at most. Returns how
// many rows are in doubt.
template <class T>
int64_t assign_block(const AssignJob<T>& job, int64_t start, int64_t stop) {
    Screened<T> screened;
    if (job.n_features <= MOST_FEATURES_OF_COLUMNS) {
        screen_columns(job, start, stop, screened);
    } else {
        screen_block(job, start, stop, screened);
    }
    // Loops without a branch, so that compilers vectorise them: a row takes three square roots.
    const int64_t n = stop - start;
    const T* const sq_norms = job.sq_norms + start;
    T sq_distances[BLOCK_ROWS], limits[BLOCK_ROWS];
    for (int64_t i = 0; i < n; ++i) {
        const T sq_distance = screened.firsts[i] + sq_norms[i];
        sq_distances[i] = sq_distance > 0 ? sq_distance : T(0);
        limits[i] = screened.firsts[i] + slack(job, sq_norms[i], sq_distances[i]);
    }
    int64_t n_uncertain = 0;
    for (int64_t i = 0; i < n; ++i) {
        // Not `second <= ...`: a row compared with a NaN must be in doubt.
        const bool is_uncertain = !(screened.seconds[i] > limits[i]);
        job.uncertain[start + i] = is_uncertain;
        n_uncertain += is_uncertain;
    }
    if (job.lows) fill_lows(job, start, n, screened.firsts, screened.seconds);
    std::copy_n(screened.labels, n, job.labels + start);
    std::copy_n(sq_distances, n, job.sq_distances + start);
    for (int64_t i = 0; job.second_sq_distances && i < n; ++i) {
        const T sq_distance = screened.seconds[i] + sq_norms[i];
        job.second_sq_distances[start + i] = sq_distance > 0 ? sq_distance : T(0);
    }
    return n_uncertain;
}
