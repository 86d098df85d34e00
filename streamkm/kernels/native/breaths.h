// What the stages of seeding repeat on a sample in memory: whole passes of Lloyd's algorithm, and
// the choices of a breath. Each is one call, since on a small sample calls take longer than work.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "dispatch.h"

namespace {

// Makes passes until one finds a cluster without mass, which the caller has to fill, `job.n_passes`
// at most. Returns how many it made, 0 if a row got no label. Each pass is `assign`, `accumulate` and `move`.
template <class T>
int64_t make_passes(const Functions<T>& functions, const PassesJob<T>& job) {
    const int64_t n_rows = job.rows.n_rows, n_features = job.rows.n_features, k = job.rows.k;
    const int64_t n_numbers = k * n_features;
    std::vector<T> before(job.rows.centroids, job.rows.centroids + n_numbers);
    std::vector<int32_t> order(n_rows);
    std::vector<int64_t> offsets(k + 1);
    std::vector<double> sq_steps(k), sums(n_numbers);
    std::vector<uint8_t> touched(k);
    AssignJob<T> rows = job.rows;
    rows.centroids = before.data();
    for (int64_t n_made = 1;; ++n_made) {
        *job.n_uncertain += assign(functions, rows, job.rechecks, job.n_threads);
        if (!sort_by_label(rows.labels, nullptr, n_rows, k, order.data(), offsets.data())) return 0;
        std::fill(sums.begin(), sums.end(), 0.0);
        accumulate(functions,
                   AccumulateJob<T>{rows.x, job.shares, order.data(), offsets.data(), sums.data(),
                                    n_features, k},
                   job.n_threads_to_add);
        for (double& sum : sums) sum *= job.unit;
        std::fill_n(job.masses, k, 0.0);
        for (int64_t row = 0; row < n_rows; ++row) {
            job.masses[rows.labels[row]] += job.weights ? job.weights[row] : 1.0;
        }
        std::copy(before.begin(), before.end(), job.after);
        bool is_full = true;
        for (int64_t cluster = 0; cluster < k; ++cluster) {
            touched[cluster] = job.masses[cluster] > 0;
            is_full = is_full && touched[cluster];
        }
        move(functions,
             MoveJob<T>{sums.data(), nullptr, nullptr, 1.0, job.masses,
                        reinterpret_cast<const bool*>(touched.data()), job.after, sq_steps.data(),
                        job.gains, n_features, job.spherical},
             k, job.n_threads_to_move);
        if (n_made == job.n_passes || !is_full) {
            if (n_made == job.n_passes && job.exact != nullptr) {
                measure(functions,
                        DistanceJob<T>{rows.x, rows.labels, before.data(), job.exact, n_rows,
                                       n_features},
                        job.n_threads_to_add);
            }
            return n_made;
        }
        std::copy(job.after, job.after + n_numbers, before.data());
    }
}

// For each centroid the other one with which a merger raises the cost least, and that rise: the
// product of their masses over the sum, times their squared distance (Ward 1963).
inline void find_mergers(const double* centroids, const double* masses, double* costs,
                         int64_t* partners, int64_t k, int64_t n_features) {
    std::vector<double> rises(k);
    std::fill_n(costs, k, std::numeric_limits<double>::infinity());
    std::fill_n(partners, k, 0);
    for (int64_t one = 1; one < k; ++one) {
        std::fill_n(rises.begin(), one, 0.0);
        for (int64_t feature = 0; feature < n_features; ++feature) {
            // `centroids` lie feature by feature, so that compilers vectorise this.
            const double* __restrict const values = centroids + feature * k;
            double* __restrict const sums = rises.data();
            for (int64_t other = 0; other < one; ++other) {
                const double difference = values[one] - values[other];
                sums[other] += difference * difference;
            }
        }
        for (int64_t other = 0; other < one; ++other) {
            const double mass = std::max(masses[one] + masses[other],
                                         std::numeric_limits<double>::min());
            const double rise = rises[other] * (masses[one] * masses[other] / mass);
            if (rise < costs[one]) costs[one] = rise, partners[one] = other;
            if (rise < costs[other]) costs[other] = rise, partners[other] = one;
        }
    }
}

// The mean of a row and the rows of its cluster nearest to it. Of every `job.step`-th row of the
// cluster, `job.most` count, or half if that is less; so do those as near as the last of them.
template <class T>
void mean_around(const Functions<T>& functions, const AroundJob<T>& job) {
    std::vector<int64_t> members;
    int64_t n_found = 0;
    for (int64_t row = 0; row < job.n_rows; ++row) {
        if (job.labels[row] == job.labels[job.row] && n_found++ % job.step == 0) {
            members.push_back(row);
        }
    }
    const int64_t n_members = static_cast<int64_t>(members.size());
    const int64_t n_near = std::min(job.most, (n_members + 1) / 2);
    std::vector<T> x(n_members * job.n_features);
    for (int64_t i = 0; i < n_members; ++i) {
        std::copy_n(job.x + members[i] * job.n_features, job.n_features, &x[i * job.n_features]);
    }
    const std::vector<int64_t> labels(n_members);
    std::vector<double> sq_distances(n_members);
    measure(functions,
            DistanceJob<T>{x.data(), labels.data(), job.x + job.row * job.n_features,
                           sq_distances.data(), n_members, job.n_features},
            1);
    std::vector<double> sorted = sq_distances;
    std::nth_element(sorted.begin(), sorted.begin() + (n_near - 1), sorted.end());
    const double limit = sorted[n_near - 1] * job.slack;
    std::vector<double> sum(job.n_features);
    double mass = 0;
    const auto add = [&](int64_t row) {
        const double weight = job.weights ? job.weights[row] : 1.0;
        mass += weight;
        for (int64_t feature = 0; feature < job.n_features; ++feature) {
            const double product = weight * job.x[row * job.n_features + feature];
            sum[feature] += product;
        }
    };
    add(job.row);
    for (int64_t i = 0; i < n_members; ++i) {
        if (sq_distances[i] <= limit) add(members[i]);
    }
    for (int64_t feature = 0; feature < job.n_features; ++feature) {
        job.mean[feature] = static_cast<T>(sum[feature] / mass);
    }
}

}  // namespace
