// What the stages of seeding repeat on a sample in memory: passes of Lloyd's algorithm, and breaths
// (see clustering/seeding/breathing.py). Each is one call: on a small sample calls take longer than
// arithmetic.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "dispatch.h"

namespace {

// What passes found beside the arrays that they filled.
struct PassedOver {
    int64_t n_made = 0;       // passes; 0 if a row got no label
    int64_t n_uncertain = 0;  // rows that screening left in doubt, in all passes
    bool is_full = false;     // whether every cluster has mass in the last pass
    bool is_worth_it = true;  // whether the last pass gained enough for another
};

// The weighted sum of squared distances.
template <class T>
double cost_of(const T* sq_distances, const double* weights, int64_t n_rows) {
    double cost = 0;
    for (int64_t row = 0; row < n_rows; ++row) cost += sq_distances[row] * (weights ? weights[row] : 1.0);
    return cost;
}

// Makes passes, `job.n_passes` at most, until one finds a cluster without mass or gains too little.
// Each pass is `assign`, `accumulate` and `move`.
template <class T>
PassedOver make_passes(const Functions<T>& functions, const PassesJob<T>& job) {
    const int64_t n_rows = job.rows.n_rows, n_features = job.rows.n_features, k = job.rows.k;
    const int64_t n_numbers = k * n_features;
    std::vector<T> before(job.rows.centroids, job.rows.centroids + n_numbers);
    std::vector<int32_t> order(n_rows);
    std::vector<int64_t> offsets(k + 1);
    std::vector<double> sums(n_numbers), sq_steps(k);
    std::vector<uint8_t> uncertain(n_rows), touched(k);
    AssignJob<T> rows = job.rows;
    rows.centroids = before.data();
    rows.uncertain = reinterpret_cast<bool*>(uncertain.data());
    PassedOver found;
    double cost_before = job.cost_before;
    while (true) {
        found.n_uncertain += assign(functions, rows, job.rechecks, job.n_threads);
        if (!sort_by_label(rows.labels, nullptr, n_rows, k, order.data(), offsets.data())) return {};
        std::fill(sums.begin(), sums.end(), 0.0);
        accumulate(AccumulateJob<T>{rows.x, job.shares, order.data(), offsets.data(), sums.data(),
                                    n_features, k},
                   job.n_threads_to_add, functions.accumulate_cluster);
        for (double& sum : sums) sum *= job.unit;
        std::fill_n(job.masses, k, 0.0);
        for (int64_t row = 0; row < n_rows; ++row) {
            job.masses[rows.labels[row]] += job.weights ? job.weights[row] : 1.0;
        }
        found.is_full = true;
        for (int64_t cluster = 0; cluster < k; ++cluster) {
            touched[cluster] = job.masses[cluster] > 0;
            found.is_full = found.is_full && touched[cluster];
        }
        std::copy(before.begin(), before.end(), job.after);
        move(functions,
             MoveJob<T>{sums.data(), nullptr, nullptr, 1.0, job.masses,
                        reinterpret_cast<const bool*>(touched.data()), job.after, sq_steps.data(),
                        job.gains, n_features, job.spherical},
             k, job.n_threads_to_move);
        if (job.least_share >= 0) {
            const double cost = cost_of(rows.sq_distances, job.weights, n_rows);
            found.is_worth_it = cost_before - cost > job.least_share * cost;
            cost_before = cost;
        }
        if (++found.n_made == job.n_passes || !found.is_full || !found.is_worth_it) break;
        std::copy(job.after, job.after + n_numbers, before.data());
    }
    if (job.exact && found.n_made == job.n_passes) {
        std::vector<double> exact(n_rows);
        measure(functions,
                DistanceJob<T>{rows.x, rows.labels, before.data(), exact.data(), n_rows, n_features},
                job.n_threads_to_add);
        std::transform(exact.begin(), exact.end(), rows.sq_distances,
                       [](double sq_distance) { return static_cast<T>(sq_distance); });
    }
    return found;
}

// Takes a step of greedy k-means++. Returns the chosen row.
template <class T>
int64_t choose(const Functions<T>& functions, const ChooseJob<T>& job, int n_threads) {
    const int64_t n_rows = job.rows.n_rows, n_features = job.rows.n_features;
    constexpr double tiny = std::numeric_limits<double>::min();
    std::vector<double> weights(job.left, job.left + n_rows);
    if (!job.is_first) {
        std::vector<double> by_distance(job.closest, job.closest + n_rows);
        for (int64_t row = 0; job.rows.weights && row < n_rows; ++row) {
            by_distance[row] *= job.rows.weights[row];
        }
        // If all rows lie on chosen ones, any other row will do.
        const double most = *std::max_element(by_distance.begin(), by_distance.end());
        if (most > 0) weights.swap(by_distance);
    }
    const double most = std::max(*std::max_element(weights.begin(), weights.end()), tiny);
    std::vector<int64_t> cumulative(n_rows), drawn(job.n_trials);
    int64_t total = 0;
    for (int64_t row = 0; row < n_rows; ++row) {
        cumulative[row] = total += static_cast<int64_t>(weights[row] / most * job.most_steps);
    }
    const int64_t width = functions.panel_width;
    const auto padded = [width](int64_t n) { return parts_of(n, width) * width; };
    std::vector<T> points(job.n_trials * n_features), sq_lengths(padded(job.n_trials));
    std::vector<T> packed(padded(job.n_trials) * padded(n_features));
    std::vector<T> sq_distances(job.n_trials * n_rows);
    std::vector<double> costs(parts_of(n_rows, PART_ROWS) * job.n_trials);
    for (int64_t i = 0; i < job.n_trials; ++i) {
        const auto place = static_cast<int64_t>(job.uniform[i] * static_cast<double>(total));
        const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), place);
        drawn[i] = std::min<int64_t>(found - cumulative.begin(), n_rows - 1);
        std::copy_n(job.rows.x + drawn[i] * n_features, n_features, &points[i * n_features]);
    }
    CompareJob<T> rows = job.rows;
    rows.centroids = points.data();
    rows.packed = packed.data();
    rows.c_sq = sq_lengths.data();
    rows.sq_distances = sq_distances.data();
    rows.own = drawn.data();
    rows.closest = job.closest;
    rows.costs = costs.data();
    rows.k = job.n_trials;
    compare(functions, rows, n_threads);
    for (size_t i = job.n_trials; i < costs.size(); ++i) costs[i % job.n_trials] += costs[i];
    const int64_t best = std::min_element(costs.begin(), costs.begin() + job.n_trials) - costs.begin();
    std::copy_n(&sq_distances[best * n_rows], n_rows, job.closest);
    job.left[drawn[best]] = 0;
    return drawn[best];
}

// The rows that are drawn by `job.uniform_of_rows` and their squared distances, `job.size` or fewer.
template <class T>
std::vector<int64_t> drawn_rows(const BreathJob<T>& job) {
    std::vector<std::pair<double, int64_t>> keys;
    for (int64_t row = 0; row < job.passes.rows.n_rows; ++row) {
        double weight = job.sq_distances[row];
        if (job.passes.weights) weight *= job.passes.weights[row];
        if (!(weight > 0)) continue;
        const double uniform = job.uniform_of_rows[row];
        // The least keys so far are a heap, the largest first. No key is less than uniform / weight,
        // which spares most logarithms.
        const bool is_full = static_cast<int64_t>(keys.size()) == job.size;
        if (is_full && uniform / weight > keys.front().first) continue;
        const std::pair<double, int64_t> key{-std::log1p(-uniform) / weight, row};
        if (is_full) {
            if (key > keys.front()) continue;
            std::pop_heap(keys.begin(), keys.end());
            keys.pop_back();
        }
        keys.push_back(key);
        std::push_heap(keys.begin(), keys.end());
    }
    std::sort_heap(keys.begin(), keys.end());
    std::vector<int64_t> rows;
    for (const auto& key : keys) rows.push_back(key.second);
    return rows;
}

// Appends the mean of the chosen row and the rows of its cluster nearest to it.
template <class T>
void add_mean_around(const Functions<T>& functions, const BreathJob<T>& job, int64_t chosen,
                     std::vector<T>& centroids) {
    const int64_t n_features = job.passes.rows.n_features, n_rows = job.passes.rows.n_rows;
    const T* const x = job.passes.rows.x;
    std::vector<int64_t> members;
    int64_t n_found = 0;
    for (int64_t row = 0; row < n_rows; ++row) {
        if (job.labels[row] == job.labels[chosen] && n_found++ % job.step == 0) {
            members.push_back(row);
        }
    }
    const int64_t n_members = static_cast<int64_t>(members.size());
    const int64_t n_near = std::min(job.most_around, (n_members + 1) / 2);
    std::vector<T> x_of_members(n_members * n_features);
    for (int64_t i = 0; i < n_members; ++i) {
        std::copy_n(x + members[i] * n_features, n_features, &x_of_members[i * n_features]);
    }
    const std::vector<int64_t> zeros(n_members);
    std::vector<double> sq_distances(n_members);
    measure(functions,
            DistanceJob<T>{x_of_members.data(), zeros.data(), x + chosen * n_features,
                           sq_distances.data(), n_members, n_features},
            1);
    std::vector<double> sorted = sq_distances;
    std::nth_element(sorted.begin(), sorted.begin() + (n_near - 1), sorted.end());
    const double limit = sorted[n_near - 1] * job.slack;
    std::vector<double> sum(n_features);
    double mass = 0;
    const auto add = [&](int64_t row) {
        const double weight = job.passes.weights ? job.passes.weights[row] : 1.0;
        mass += weight;
        for (int64_t feature = 0; feature < n_features; ++feature) {
            sum[feature] += weight * x[row * n_features + feature];
        }
    };
    add(chosen);
    for (int64_t i = 0; i < n_members; ++i) {
        if (sq_distances[i] <= limit) add(members[i]);
    }
    for (const double total : sum) centroids.push_back(static_cast<T>(total / mass));
}

// For each centroid the cheapest merger (Ward 1963): its cost, and with which other one it is.
template <class T>
void find_mergers(const std::vector<T>& centroids, const std::vector<double>& masses,
                  std::vector<double>& costs, std::vector<int64_t>& partners) {
    const int64_t k = masses.size(), n_features = centroids.size() / k;
    // Feature by feature, so that compilers vectorise the loop over centroids.
    std::vector<double> columns(centroids.size()), rises(k);
    for (int64_t i = 0; i < k * n_features; ++i) {
        columns[i % n_features * k + i / n_features] = centroids[i];
    }
    for (int64_t one = 1; one < k; ++one) {
        double* __restrict const sums = rises.data();
        std::fill_n(sums, one, 0.0);
        for (int64_t feature = 0; feature < n_features; ++feature) {
            const double* __restrict const values = columns.data() + feature * k;
            for (int64_t other = 0; other < one; ++other) {
                const double difference = values[one] - values[other];
                sums[other] += difference * difference;
            }
        }
        for (int64_t other = 0; other < one; ++other) {
            const double both = std::max(masses[one] + masses[other],
                                         std::numeric_limits<double>::min());
            const double cost = sums[other] * (masses[one] * masses[other] / both);
            if (cost < costs[one]) costs[one] = cost, partners[one] = other;
            if (cost < costs[other]) costs[other] = cost, partners[other] = one;
        }
    }
}

// Whether the cheapest merger costs more than `job.settled` times the costliest cluster.
template <class T>
bool is_settled(const BreathJob<T>& job) {
    const int64_t k = job.passes.rows.k, n_numbers = k * job.passes.rows.n_features;
    const std::vector<T> centroids(job.passes.rows.centroids, job.passes.rows.centroids + n_numbers);
    std::vector<double> masses(k), within(k), costs(k, std::numeric_limits<double>::infinity());
    std::vector<int64_t> partners(k);
    for (int64_t row = 0; row < job.passes.rows.n_rows; ++row) {
        const double weight = job.passes.weights ? job.passes.weights[row] : 1.0;
        masses[job.labels[row]] += weight;
        within[job.labels[row]] += weight * job.sq_distances[row];
    }
    find_mergers(centroids, masses, costs, partners);
    return *std::min_element(costs.begin(), costs.end()) >
           job.settled * *std::max_element(within.begin(), within.end());
}

// The centroids without the `job.size` of them that are missed least.
template <class T>
std::vector<T> without_missed_least(const BreathJob<T>& job, const std::vector<T>& centroids,
                                    std::vector<double> masses) {
    const int64_t n_features = job.passes.rows.n_features, n_now = masses.size();
    int exponent;
    std::frexp(*std::max_element(masses.begin(), masses.end()), &exponent);
    for (double& mass : masses) mass = std::ldexp(mass, -exponent);
    std::vector<double> costs(n_now, std::numeric_limits<double>::infinity());
    std::vector<int64_t> partners(n_now), order(n_now);
    find_mergers(centroids, masses, costs, partners);
    const double largest = std::max(*std::max_element(costs.begin(), costs.end()),
                                    std::numeric_limits<double>::min());
    for (int64_t i = 0; i < n_now; ++i) {
        costs[i] = static_cast<float>(costs[i] / largest);
        if (job.uniform_of_clusters != nullptr) {
            costs[i] *= std::pow(-std::log1p(-job.uniform_of_clusters[i]), job.blur);
        }
    }
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return std::tie(costs[a], masses[a], a) < std::tie(costs[b], masses[b], b);
    });
    std::vector<uint8_t> is_gone(n_now), stays(n_now);
    int64_t n_left = n_now;
    // Those whose partner is gone, or which are a partner themselves, come last.
    for (const bool is_last : {false, true}) {
        for (const int64_t place : order) {
            if (n_left == job.passes.rows.k) break;
            if (is_gone[place]) continue;
            if (is_last || !(stays[place] || is_gone[partners[place]])) {
                is_gone[place] = stays[partners[place]] = true;
                --n_left;
            }
        }
    }
    std::vector<T> left;
    for (int64_t i = 0; i < n_now; ++i) {
        const T* const centroid = &centroids[i * n_features];
        if (!is_gone[i]) left.insert(left.end(), centroid, centroid + n_features);
    }
    return left;
}

// Takes a breath. Makes no pass, or is not full, where the caller has to see what to do: fewer than
// `job.size` rows lie off their centroids, these are settled, or a cluster has no mass.
template <class T>
PassedOver breathe(const Functions<T>& functions, const BreathJob<T>& job) {
    const int64_t n_features = job.passes.rows.n_features, k = job.passes.rows.k;
    const T* const before = job.passes.rows.centroids;
    if (job.settled > 0 && is_settled(job)) return {};
    const std::vector<int64_t> drawn = drawn_rows(job);
    if (static_cast<int64_t>(drawn.size()) < job.size) return {};
    std::vector<T> centroids(before, before + k * n_features);
    for (const int64_t row : drawn) add_mean_around(functions, job, row, centroids);
    const int64_t n_now = k + job.size;
    std::vector<T> moved(n_now * n_features);
    std::vector<double> masses(n_now), gains(n_now);
    PassesJob<T> passes = job.passes;
    passes.rows.centroids = centroids.data();
    passes.rows.k = n_now;
    passes.n_passes = job.n_passes_in;
    passes.exact = false;
    passes.masses = masses.data();
    passes.after = moved.data();
    passes.gains = gains.data();
    const PassedOver first = make_passes(functions, passes);
    if (!first.is_full) return first;
    const std::vector<T> left = without_missed_least(job, moved, masses);
    passes = job.passes;
    passes.rows.centroids = left.data();
    PassedOver found = make_passes(functions, passes);
    found.n_uncertain += first.n_uncertain;
    return found;
}

// What breaths found beside the arrays that they filled.
struct Breathed {
    int64_t n_taken = 0;  // fewer than asked for where the caller has to take the next one
    int64_t size = 0, n_refused = 0;
    int64_t n_uncertain = 0;
    bool is_kept = false;  // whether any was kept
};

// Takes breaths; keeps those that lower the cost. `job.first.passes` says where the passes at the end
// of a breath put what they find; gains are those of the last breath that was kept.
template <class T>
Breathed breathe_on(const Functions<T>& functions, const BreathsJob<T>& job) {
    BreathJob<T> breath = job.first;
    const PassesJob<T>& passes = job.first.passes;
    const int64_t n_rows = passes.rows.n_rows, k = passes.rows.k;
    std::vector<T> after(k * passes.rows.n_features), sq_distances(n_rows);
    std::vector<int64_t> labels(n_rows);
    std::vector<double> masses(k), gains(k);
    breath.passes.rows.labels = labels.data();
    breath.passes.rows.sq_distances = sq_distances.data();
    breath.passes.rows.centroids = job.centroids;
    breath.passes.after = after.data();
    breath.passes.masses = masses.data();
    breath.passes.gains = gains.data();
    breath.labels = job.labels;
    breath.sq_distances = job.sq_distances;
    Breathed all;
    all.size = breath.size;
    all.n_refused = job.n_refused;
    double cost = job.cost;
    for (; all.n_taken < job.n_breaths && all.n_refused < job.patience; ++all.n_taken) {
        const double* const uniform = job.first.uniform_of_rows + all.n_taken * job.stride;
        breath.uniform_of_rows = uniform;
        breath.uniform_of_clusters = all.n_refused > 0 ? uniform + n_rows : nullptr;
        breath.settled = all.n_refused == job.tried ? job.first.settled : 0;
        breath.size = all.size;
        const PassedOver found = breathe(functions, breath);
        all.n_uncertain += found.n_uncertain;
        if (found.n_made != passes.n_passes || !found.is_full) break;
        const double cost_after = cost_of(sq_distances.data(), passes.weights, n_rows) -
                                  std::accumulate(gains.begin(), gains.end(), 0.0);
        if (cost_after < (1 - job.least_share) * cost) {
            cost = cost_after;
            all.n_refused = 0;
            all.is_kept = true;
            std::copy(labels.begin(), labels.end(), job.labels);
            std::copy(sq_distances.begin(), sq_distances.end(), job.sq_distances);
            std::copy(after.begin(), after.end(), job.centroids);
            std::copy(gains.begin(), gains.end(), passes.gains);
        } else {
            ++all.n_refused;
            all.size = std::max<int64_t>(static_cast<int64_t>(job.shrunk * all.size), 1);
        }
    }
    return all;
}

}  // namespace
