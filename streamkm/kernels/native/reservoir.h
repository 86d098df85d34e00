// Offers rows of a batch to the reservoir, whose rows fill empty clusters.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "jobs.h"

namespace {

struct Drawn {
    double key;
    int64_t row;  // of the batch; -1 - r for row r of the reservoir
    bool operator<(const Drawn& other) const { return key < other.key; }
};

// The offered rows with the least keys, each Exp(1) / chance; see kernels/ops/offer.py.
template <class T>
std::vector<Drawn> draw(const OfferJob<T>& job) {
    const double last = *std::max_element(job.keys, job.keys + job.n_reservoir);
    std::vector<Drawn> drawn;
    for (int64_t i = 0; i < job.n_offered; ++i) {
        const int64_t row = job.first + i * job.stride;
        const double chance = job.sq_distances[i] * (job.weights ? job.weights[row] : 1);
        // Since -log(1 - u) >= u, the key of any other row is beyond the reservoir's last.
        if (!(job.uniform[i] < chance * last)) continue;
        // Skips a row on its centroid, to rounding, and one without a direction.
        const T sq_norm = job.sq_norms[row];
        if (job.sq_distances[i] <= static_cast<T>(job.rounding) * sq_norm) continue;
        if (job.is_normalized && sq_norm == 0) continue;
        const double key = -std::log1p(-job.uniform[i]) / chance;
        if (key < last) drawn.push_back({key, row});
    }
    const size_t most = job.n_reservoir;
    if (drawn.size() > most) {
        std::nth_element(drawn.begin(), drawn.begin() + most, drawn.end());
        drawn.resize(most);
    }
    return drawn;
}

// Updates the reservoir. Returns false if a row that would enter is not within the window.
template <class T>
bool offer(const OfferJob<T>& job) {
    std::vector<Drawn> entries = draw(job);
    if (entries.empty()) return true;
    for (const Drawn& entry : entries) {
        const int64_t position = job.positions ? job.positions[entry.row] : entry.row;
        if (position < 0 || position >= job.n_window) return false;
    }
    const int64_t n_features = job.n_features;
    for (int64_t r = 0; r < job.n_reservoir; ++r) entries.push_back({job.keys[r], -1 - r});
    std::stable_sort(entries.begin(), entries.end());
    const std::vector<T> rows(job.rows, job.rows + job.n_reservoir * n_features);
    const std::vector<int64_t> labels(job.row_labels, job.row_labels + job.n_reservoir);
    std::vector<double> weights;
    if (job.weights) weights.assign(job.row_weights, job.row_weights + job.n_reservoir);
    for (int64_t r = 0; r < job.n_reservoir; ++r) {
        const auto [key, row] = entries[r];
        T* const to = job.rows + r * n_features;
        job.keys[r] = key;
        if (std::isinf(key)) {
            // Places without a row hold zeros.
            std::fill_n(to, n_features, T(0));
            job.row_labels[r] = 0;
            if (job.weights) job.row_weights[r] = 0;
        } else if (row < 0) {
            const int64_t old = -1 - row;
            std::copy_n(rows.data() + old * n_features, n_features, to);
            job.row_labels[r] = labels[old];
            if (job.weights) job.row_weights[r] = weights[old];
        } else {
            const int64_t position = job.positions ? job.positions[row] : row;
            std::copy_n(job.x + position * n_features, n_features, to);
            job.row_labels[r] = job.labels[row];
            if (job.weights) job.row_weights[r] = job.weights[row];
        }
    }
    return true;
}

}  // namespace
