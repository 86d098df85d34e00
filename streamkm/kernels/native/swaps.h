// What it is worth to let a row take a centroid's place, from distances that are known.

#pragma once

#include <algorithm>
#include <cstdint>

#include "jobs.h"
#include "pool.h"

namespace {

// Each candidate is one thread's business, and rows are added up in their order.
template <class T>
void swap_gains(const SwapJob<T>& job, int64_t n_candidates, int n_threads) {
    Pool::instance().run(n_candidates, n_threads, [&](int64_t candidate) {
        const T* const distances = job.sq_distances + candidate * job.n_rows;
        double* const gains = job.gains + candidate * job.k;
        std::fill_n(gains, job.k, 0.0);
        double gained = 0;
        for (int64_t row = 0; row < job.n_rows; ++row) {
            const T first = job.first[row], with_it = std::min(distances[row], first);
            const double weight = job.weights ? job.weights[row] : 1;
            gained += weight * (first - with_it);
            // Rows whose centroid goes turn to the candidate or to their second nearest.
            gains[job.labels[row]] -= weight * (std::min(distances[row], job.second[row]) - with_it);
        }
        for (int64_t place = 0; place < job.k; ++place) gains[place] += gained;
    });
}

}  // namespace
