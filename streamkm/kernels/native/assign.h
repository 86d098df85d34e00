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
    int64_t n_uncertain = 0;
    for (int64_t row = start; row < stop; ++row) {
        const T score = screened.firsts[row - start], sq_norm = job.sq_norms[row];
        const T sq_distance = score + sq_norm > 0 ? score + sq_norm : T(0);
        const T second = screened.seconds[row - start];
        // Not `second <= ...`: a row compared with a NaN must be in doubt.
        const bool is_uncertain = !(second > score + slack(job, sq_norm, sq_distance));
        job.labels[row] = screened.labels[row - start];
        job.sq_distances[row] = sq_distance;
        job.uncertain[row] = is_uncertain;
        if (job.second_sq_distances) {
            job.second_sq_distances[row] = second + sq_norm > 0 ? second + sq_norm : T(0);
        }
        n_uncertain += is_uncertain;
    }
    return n_uncertain;
}
