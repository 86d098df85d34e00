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
    std::copy_n(screened.labels, n, job.labels + start);
    std::copy_n(sq_distances, n, job.sq_distances + start);
    for (int64_t i = 0; job.second_sq_distances && i < n; ++i) {
        const T sq_distance = screened.seconds[i] + sq_norms[i];
        job.second_sq_distances[start + i] = sq_distance > 0 ? sq_distance : T(0);
    }
    return n_uncertain;
}
