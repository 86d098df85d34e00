// Passes of Lloyd's algorithm that go on from what the pass before has found of each row.
//
// A row brings its label and a bound: no other centroid was nearer. Since then each centroid has
// drifted by a known distance. So those alone may be nearer than the row's own that have drifted by
// more than the bound exceeds the distance to that (Hamerly 2010, who compares the greatest drift
// alone). In order of drift they are the first ones: rows are sorted by how many of these they must be
// compared with, a few steps, and each step is an `assign` of its own. Where most centroids stand still
// and a few go far, as in most passes, that is a small part of all; with one drift for all it is none.
//
// Labels, and the bits of distances, are those of an `assign` of all rows to all centroids.

#pragma once

#include "dispatch.h"

namespace {

// Centroids in order of drift, in steps: each step has those of the ones before and some more.
struct Drift {
    const int64_t* members;  // centroids of step after step, each ascending
    const int64_t* offsets;  // n_steps + 1: where in `members` each step begins
    const double* limits;    // n_steps + 1: drift of any centroid at most, and of those not in each step;
                             // null if nothing is known of any row
    int64_t n_steps;  // none where there are few centroids
    int64_t farthest;        // the centroid that has drifted most
    double next;             // the drift of the others at most
};

// Rows with what the pass before has found of them, to be replaced.
template <class T>
struct CarriedJob {
    AssignJob<T> rows;  // `exact`, `dropped` and `lows` are given
    int32_t* labels;    // n_rows
    float* lows;        // n_rows: no centroid was nearer, but that of the label; 0 where nothing is known
    Drift drift;
};

struct CarriedRows {
    int64_t n_uncertain = 0, n_compared = 0;
};

// What the distance to a centroid, computed, may be more than it is: a share, and what vanishes of squares.
constexpr double DISTANCE_SLACK = 1 + 0x1p-20, DISTANCE_VANISHED = 1e-150;

// The bound less a drift, rounded down.
inline float lowered(float low, double drift) {
    const double left = (static_cast<double>(low) - drift) * (1 - 0x1p-20);
    return left > 1e-30 ? static_cast<float>(left) : 0.0f;  // A NaN says nothing either.
}

// How many steps of centroids a row must be compared with; one more than there are for all centroids.
inline int64_t steps_of(const Drift& drift, float low, double sq_distance, int64_t label) {
    const double spare = static_cast<double>(low) - (std::sqrt(sq_distance) * DISTANCE_SLACK + DISTANCE_VANISHED);
    if (spare > (label == drift.farthest ? drift.next : drift.limits[0])) return 0;
    int64_t step = 1;
    while (step <= drift.n_steps && !(spare > drift.limits[step])) ++step;
    return step;
}

// Compares rows, by their numbers, with the centroids of a step, or all of them. Returns how many were
// in doubt; they are rechecked.
template <class T>
int64_t compare_step(const Functions<T>& functions, const CarriedJob<T>& job, const int32_t* rows, int64_t n,
                     int64_t step, int n_threads) {
    const AssignJob<T>& all = job.rows;
    const Drift& drift = job.drift;
    const int64_t d = all.n_features;
    const bool has_all = step > drift.n_steps;
    const int64_t* const members = has_all ? nullptr : drift.members + drift.offsets[step - 1];
    const int64_t k = has_all ? all.k : drift.offsets[step] - drift.offsets[step - 1];
    std::vector<T> centroids(has_all ? 0 : k * d);
    const std::unique_ptr<T[]> sq_norms(new T[n]), sq_distances(new T[n]);
    const std::unique_ptr<int32_t[]> positions(new int32_t[n]);
    const std::unique_ptr<int64_t[]> labels(new int64_t[n]);
    const std::unique_ptr<double[]> exact(new double[n]);
    const std::unique_ptr<float[]> lows(new float[n]);
    const std::unique_ptr<bool[]> flags(new bool[2 * n]);
    std::atomic<bool> any_dropped{false};
    for_each_part(n, n_threads, [&](int64_t start, int64_t stop) {
        bool is_any = false;
        for (int64_t i = start; i < stop; ++i) {
            positions[i] = all.positions ? all.positions[rows[i]] : rows[i];
            sq_norms[i] = all.sq_norms[rows[i]];
            is_any |= all.dropped[rows[i]];
        }
        if (is_any) any_dropped = true;
    });
    for (int64_t i = 0; !has_all && i < k; ++i) {
        std::copy_n(all.centroids + members[i] * d, d, centroids.data() + i * d);
    }
    AssignJob<T> some = all;
    some.positions = positions.get();
    some.sq_norms = sq_norms.get();
    some.centroids = has_all ? all.centroids : centroids.data();
    some.labels = labels.get();
    some.sq_distances = sq_distances.get();
    some.uncertain = flags.get();
    some.dropped = any_dropped ? flags.get() + n : nullptr;
    some.exact = exact.get();
    some.lows = lows.get();
    some.n_rows = n;
    some.k = k;
    const int64_t n_uncertain = assign(functions, some, true, n_threads);
    const auto keep = [&](int64_t i) {
        const int64_t row = rows[i], label = has_all ? labels[i] : members[labels[i]];
        const int64_t own = job.labels[row];
        if (has_all) {
            job.lows[row] = all.dropped[row] ? 0 : lows[i];
        } else {
            // Those beyond the step, those of it but the nearest, and of the two that were compared
            // last the one that lost.
            float low = std::min(lowered(job.lows[row], drift.limits[step]), lows[i]);
            const bool stays = all.exact[row] < exact[i] || (all.exact[row] == exact[i] && own <= label);
            if (label != own) low = std::min(low, lowered(static_cast<float>(std::min<double>(
                std::sqrt(std::max(exact[i], all.exact[row])), std::numeric_limits<float>::max())), 0));
            job.lows[row] = low;
            if (stays) return;
        }
        job.labels[row] = static_cast<int32_t>(label);
        all.exact[row] = exact[i];
    };
    for_each_part(n, n_threads, [&](int64_t start, int64_t stop) {
        for (int64_t i = start; i < stop; ++i) keep(i);
    });
    return n_uncertain;
}

// Rows by the number of steps that they must be compared with.
struct RowsBySteps {
    std::unique_ptr<int32_t[]> rows;  // those of none first
    std::vector<int64_t> starts;      // where those of each number begin, and all of them
};

// Sorts rows by the number of steps, of which there are `n_steps` at most. What `know` does to a part of
// the rows comes first; then `steps_of_row` is asked for each.
template <class Know, class StepsOfRow>
RowsBySteps sort_by_steps(int64_t n_rows, int64_t n_steps, int n_threads, const Know& know, const StepsOfRow& steps_of_row) {
    const int64_t n_kinds = n_steps + 1, n_parts = parts_of(n_rows, PART_ROWS);
    const std::unique_ptr<int32_t[]> steps(new int32_t[n_rows]);
    std::vector<int64_t> places(n_parts * n_kinds);  // counts of each part first
    for_each_part(n_rows, n_threads, [&](int64_t start, int64_t stop) {
        know(start, stop);
        int64_t* const counts = places.data() + start / PART_ROWS * n_kinds;
        for (int64_t row = start; row < stop; ++row) {
            steps[row] = static_cast<int32_t>(steps_of_row(row));
            ++counts[steps[row]];
        }
    });
    RowsBySteps sorted{std::unique_ptr<int32_t[]>(new int32_t[n_rows]), std::vector<int64_t>(n_kinds + 1)};
    int64_t place = 0;
    for (int64_t kind = 0; kind < n_kinds; ++kind) {
        sorted.starts[kind] = place;
        for (int64_t part = 0; part < n_parts; ++part) place += std::exchange(places[part * n_kinds + kind], place);
    }
    sorted.starts[n_kinds] = place;
    for_each_part(n_rows, n_threads, [&](int64_t start, int64_t stop) {
        int64_t* const of_part = places.data() + start / PART_ROWS * n_kinds;
        for (int64_t row = start; row < stop; ++row) sorted.rows[of_part[steps[row]]++] = static_cast<int32_t>(row);
    });
    return sorted;
}

// Labels all rows, and rechecks those in doubt.
template <class T>
CarriedRows assign_carried(const Functions<T>& functions, CarriedJob<T>& job, int n_threads) {
    // Fewer rows are compared with a step more: to pack its centroids would take longer.
    constexpr int64_t FEW_ROWS = 64;
    AssignJob<T>& all = job.rows;
    const Drift& drift = job.drift;
    CarriedRows done;
    if (drift.limits == nullptr) {
        all.lows = job.lows;
        done.n_uncertain = assign(functions, all, true, n_threads);
        done.n_compared = all.n_rows * all.k;
        for_each_part(all.n_rows, n_threads, [&](int64_t start, int64_t stop) {
            for (int64_t row = start; row < stop; ++row) {
                job.labels[row] = static_cast<int32_t>(all.labels[row]);
                if (all.dropped[row]) job.lows[row] = 0;
            }
        });
        return done;
    }
    const auto know = [&](int64_t start, int64_t stop) {
        std::copy(job.labels + start, job.labels + stop, all.labels + start);
        functions.know_block(all, start, stop);
    };
    const RowsBySteps sorted = sort_by_steps(all.n_rows, drift.n_steps + 1, n_threads, know, [&](int64_t row) {
        const float low = all.dropped[row] ? 0 : job.lows[row];
        const int64_t steps = steps_of(drift, low, all.exact[row], job.labels[row]);
        if (steps == 0) job.lows[row] = lowered(low, job.labels[row] == drift.farthest ? drift.next : drift.limits[0]);
        return steps;
    });
    done.n_compared = all.n_rows;
    int64_t start = sorted.starts[1];
    for (int64_t step = 1; step <= drift.n_steps + 1; ++step) {
        const bool has_all = step > drift.n_steps;
        const int64_t n = sorted.starts[step + 1] - start;
        if (n == 0 || (n < FEW_ROWS && !has_all)) continue;  // These are the next step's too.
        const int64_t k = has_all ? all.k : drift.offsets[step] - drift.offsets[step - 1];
        done.n_uncertain += compare_step(functions, job, sorted.rows.get() + start, n, step, n_threads);
        done.n_compared += n * k;
        start += n;
    }
    for_each_part(all.n_rows, n_threads, [&](int64_t first, int64_t stop) {
        for (int64_t row = first; row < stop; ++row) {
            all.labels[row] = job.labels[row];
            all.sq_distances[row] = static_cast<T>(all.exact[row]);
        }
    });
    return done;
}

}  // namespace
