// How far the cost falls if a candidate takes a centroid's place, from known distances.

#pragma once

#include <algorithm>
#include <cstdint>

#include "jobs.h"
#include "pool.h"

namespace {

// One thread takes each candidate, and adds up its rows in their order.
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
            // Rows that lose their centroid go to the candidate or to their second nearest.
            gains[job.labels[row]] -= weight * (std::min(distances[row], job.second[row]) - with_it);
        }
        for (int64_t place = 0; place < job.k; ++place) gains[place] += gained;
    });
}

}  // namespace
