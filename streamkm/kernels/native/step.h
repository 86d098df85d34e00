// What a step of mini-batches does beside assigning rows and adding them up; see kernels/ops/step.py.
// A few operations a cluster and some thirty numbers: as operations of torch they took 2 ms.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "dispatch.h"
#include "jobs.h"

namespace {

// What lengths of rows must be, that their quanta may be taken from the state; see clustering/step_sums.py.
struct Reach {
    double reach;        // farthest that a row may be from its centroid
    double least_share;  // squared lengths are at least this share of 4 to the power of the exponent,
    double most_share;   // and at most that
};

// Fills the exponents of clusters from the squared lengths of centroids; at last those of rows that no
// cluster counts, and of squared distances.
template <class T>
void expect_exponents(const T* sq_norms, int64_t k, const Reach& reach, int32_t* exponents) {
    int exponent;
    for (int64_t cluster = 0; cluster < k; ++cluster) {
        std::frexp(std::sqrt(static_cast<double>(sq_norms[cluster])) + reach.reach, &exponent);
        exponents[cluster] = exponent + 1;  // One more, for lengths that were rounded.
    }
    exponents[k] = 0;
    std::frexp(reach.reach * reach.reach, &exponent);
    exponents[k + 1] = exponent;
}

// Number of rows that are longer, farther or much shorter than is expected.
template <class T>
int64_t count_misfits(const int64_t* labels, const T* sq_norms, const T* sq_distances, int64_t n_rows, int64_t k,
                      const Reach& reach, const int32_t* exponents) {
    std::vector<double> longest(k), shortest(k);
    for (int64_t cluster = 0; cluster < k; ++cluster) {
        longest[cluster] = std::ldexp(reach.most_share, 2 * exponents[cluster]);
        shortest[cluster] = std::ldexp(reach.least_share, 2 * exponents[cluster]);
    }
    int64_t n_misfits = 0;
    T farthest = 0;
    for (int64_t row = 0; row < n_rows; ++row) {
        farthest = std::max(farthest, sq_distances[row]);
        if (labels[row] == k) continue;
        const double sq_norm = sq_norms[row];
        n_misfits += sq_norm > longest[labels[row]] || (sq_norm < shortest[labels[row]] && sq_norm > 0);
    }
    return n_misfits + (static_cast<double>(farthest) >= std::ldexp(1.0, exponents[k + 1]));
}

// The sums of a batch, over all processes.
struct BatchAdded {
    const int64_t* sums;       // n_limbs x (k + 1) x n_features, in quanta
    const int32_t* exponents;  // k + 2
    const void* counts;        // k numbers of rows, each of `count_bytes`
    const int64_t* ahead;      // the sum of squared distances in quanta, and how many rows were dropped
    int64_t n_limbs, count_bytes;
    int n_bits;

    int64_t count(int64_t cluster) const {
        if (count_bytes == 2) return static_cast<const int16_t*>(counts)[cluster];
        if (count_bytes == 4) return static_cast<const int32_t*>(counts)[cluster];
        return static_cast<const int64_t*>(counts)[cluster];
    }
};

// What a step changes of a state; see KMeansState.
template <class T>
struct StateOfStep {
    T* centroids;
    double *sums, *mass;
    int64_t *counts, *epoch_counts;
    double *inertia, *batch_inertia, *shift, *smoothed_inertia, *best_inertia;
    int64_t *no_improvement, *n_steps, *n_dropped, *stop;
    const double* tolerance;
};

// What it goes by; see StepRules.
struct RulesOfStep {
    double memory;     // rows that a cluster remembers at most; NaN where it remembers every row
    double n_all;      // rows of the whole array
    int64_t patience;  // steps without improvement after which the state stops; below 0 for never
    int64_t by_tol, by_no_improvement;
    bool spherical;
};

// Records inertia and shift of a step, and stops the state if they say so.
template <class T>
void watch_step(const StateOfStep<T>& state, const RulesOfStep& rules, double inertia, double n_rows, double shift) {
    const double mean = inertia / (n_rows > 0 ? n_rows : 1);
    *state.inertia += inertia;
    *state.batch_inertia = mean;
    *state.shift = shift;
    *state.n_steps += 1;
    // A batch whose rows were all dropped moves nothing: that is no sign of convergence.
    const bool is_judged = n_rows > 0;
    if (is_judged && *state.tolerance > 0 && shift <= *state.tolerance) *state.stop = rules.by_tol;
    if (rules.patience < 0) return;
    // As in scikit-learn, the first batch does not count: its inertia is that of the seeding.
    if (is_judged && *state.n_steps > 1) {
        const double alpha = std::min(2.0 * n_rows / rules.n_all, 1.0);
        double& smoothed = *state.smoothed_inertia;
        smoothed = std::isnan(smoothed) ? mean : smoothed * (1 - alpha) + mean * alpha;
        if (smoothed < *state.best_inertia) {
            *state.best_inertia = smoothed;
            *state.no_improvement = 0;
        } else {
            *state.no_improvement += 1;
        }
    }
    if (*state.no_improvement >= rules.patience && *state.stop == 0) *state.stop = rules.by_no_improvement;
}

// Does to a running state what `MiniBatch.update_` does with the sums of a batch without weights. Throws
// std::bad_alloc if there is no room for a row of each part: before anything has changed.
template <class T>
void finish_step(const Functions<T>& functions, const StateOfStep<T>& state, const BatchAdded& batch,
                 const RulesOfStep& rules, int64_t k, int64_t n_features, int n_threads) {
    constexpr int64_t CLUSTERS_AT_ONCE = 16;
    const std::unique_ptr<double[]> sq_steps(new double[k]());
    const std::unique_ptr<bool[]> touched(new bool[k]);
    const std::unique_ptr<double[]> rows(new double[parts_of(k, CLUSTERS_AT_ONCE) * n_features]);
    int64_t n_rows = 0;
    for (int64_t cluster = 0; cluster < k; ++cluster) {
        const int64_t count = batch.count(cluster);
        n_rows += count;
        touched[cluster] = count > 0;
    }
    Pool::instance().run(parts_of(k, CLUSTERS_AT_ONCE), n_threads, [&](int64_t part) {
        double* const wide = rows.get() + part * n_features;
        const int64_t stop = std::min((part + 1) * CLUSTERS_AT_ONCE, k);
        for (int64_t cluster = part * CLUSTERS_AT_ONCE; cluster < stop; ++cluster) {
            if (!touched[cluster]) continue;
            const auto added = static_cast<double>(batch.count(cluster));
            double& mass = state.mass[cluster];
            double kept = 1;
            if (!std::isnan(rules.memory)) {
                // All new rows are remembered, even if there are more of them.
                const double most = std::min(mass + added, std::max(rules.memory, added));
                kept = (most - added) / mass;
                mass *= kept;
            }
            mass += added;
            const double quantum = std::ldexp(1.0, batch.exponents[cluster] - batch.n_bits);
            const int64_t* limb = batch.sums + cluster * n_features;
            for (int64_t i = 0; i < n_features; ++i) wide[i] = static_cast<double>(limb[i]) * quantum;
            if (batch.n_limbs > 1) {
                const double smaller = std::ldexp(quantum, -batch.n_bits);
                limb += (k + 1) * n_features;
                for (int64_t i = 0; i < n_features; ++i) wide[i] += static_cast<double>(limb[i]) * smaller;
            }
            // Of this cluster alone.
            const int64_t first = cluster * n_features;
            functions.move_cluster(MoveJob<T>{state.sums + first, &kept, wide, 1.0, &mass, &touched[cluster],
                                              state.centroids + first, &sq_steps[cluster], nullptr, n_features,
                                              rules.spherical},
                                   0);
        }
    });
    for (int64_t cluster = 0; cluster < k; ++cluster) {
        const int64_t count = batch.count(cluster);
        state.counts[cluster] += count;
        state.epoch_counts[cluster] += count;
    }
    *state.n_dropped += batch.ahead[1];
    const double quantum = std::ldexp(1.0, batch.exponents[k + 1] - batch.n_bits);
    watch_step(state, rules, static_cast<double>(batch.ahead[0]) * quantum, static_cast<double>(n_rows),
               std::accumulate(sq_steps.get(), sq_steps.get() + k, 0.0));
}

}  // namespace
