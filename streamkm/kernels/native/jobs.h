// The arguments of the arithmetic, as plain pointers and sizes: a struct for each kind of work.

#pragma once

#include <cmath>
#include <cstdint>

// Rows are scored in blocks, each by one thread. Tiles of a block: few enough that their running
// bests stay in the cache of a core, enough that centroids are seldom read from memory.
constexpr int TILES_PER_BLOCK = 16;
// Bytes of packed centroids that a whole block is scored against before the next ones: as much as
// the second-level cache of a core holds beside the rows.
constexpr int64_t GROUP_BYTES = 256 << 10;
// Rows of a part, into which other work is divided, whatever the instruction set.
constexpr int64_t PART_ROWS = 256;

// A double of this size has 1 as its last bit: adding it rounds to an integer, which is then found
// in the bits. Sums of the bits, less those of the constant, are sums of the integers.
constexpr double ROUNDER = 0x1.8p52;
// Bits of a whole number of a graded sum; and the least grade, below which its sizes would vanish.
constexpr int GRADE_BITS = 44, LEAST_GRADE = -22;

// Nearest centroids of rows. All arrays lie row by row without gaps.
template <class T>
struct AssignJob {
    const T* x;                // n_rows x n_features, or the window that `positions` point into
    const int32_t* positions;  // n_rows, or null where row follows row
    T* sq_norms;               // n_rows; to be filled if `dropped` is given
    const T* centroids;        // k x n_features
    T* packed;           // room for the centroids as the instruction set reads them
    T* c_sq;             // room for their squared lengths
    uint8_t* in_bytes;   // room for the centroids in bytes, see bytes.h
    int64_t* labels;     // n_rows, to be filled
    T* sq_distances;     // n_rows, to be filled: |x|^2 plus the least |c|^2 - 2 x.c
    bool* uncertain;     // n_rows, to be filled: whether rounding may have decided the label
    int64_t n_rows, n_features, k;
    T rounding;    // error of a score, as a share of (|x| + |c|)^2
    T cancels;     // share of a squared length below which a squared distance is taken anew
    T longest_sq;  // to be filled: squared length of the longest centroid
    T* second_sq_distances;  // n_rows, to be filled, or null: of the second least score
    bool* dropped;           // n_rows, to be filled, or null: whether a row is left out
    const T* zeros;          // n_features: what is read in place of a dropped row
    double* exact;           // n_rows, to be filled, or null: as sums of squared differences
    T most_sq_norm;          // squared length above which, or if it is NaN, a row is dropped
    float* lows;             // n_rows, to be filled, or null: no centroid is nearer than this, but that
                             // of the label; only where `exact` is filled

    // The row as it was given.
    const T* given(int64_t number) const {
        return x + (positions ? positions[number] : number) * n_features;
    }
    // The row, or zeros if it is dropped; `dropped` must be filled.
    const T* row(int64_t number) const {
        return dropped && dropped[number] ? zeros : given(number);
    }
};

// Nearest centroids of rows, where centroids are in groups.
template <class T>
struct GroupedJob {
    AssignJob<T> rows;        // with the centroids in their order
    const int32_t* order;     // k: centroids, group after group
    const int64_t* offsets;   // n_groups + 1: where in `order` each group begins; none is empty
    int64_t n_groups;
    int64_t* panels;          // n_groups + 1: the first panel of each group
    int32_t* of_lanes;        // to be filled: the centroid of each lane of the panels
    uint8_t* members;         // room for the centroids in bytes, panel after panel
    T* centres;               // n_groups x n_features, to be filled
    float* radii;             // n_groups, and room up to a whole panel: to be filled
    uint8_t* centres_in_bytes;
    int32_t* of_rows;         // n_rows, to be filled: the group whose centre is about the nearest

    int64_t n_panels() const { return panels[n_groups]; }
};

// Nearest centroids of rows, by the heads of both first: see heads.h.
template <class T>
struct HeadJob {
    AssignJob<T> rows;
    const float* directions;  // n_directions x n_features: orthonormal rows, but for `skew`
    const T* middle;          // n_features: what points are less before they are turned
    int64_t n_directions;
    double skew;       // at most the Frobenius norm of directions times their transpose, less the identity
    float* packed;     // room for the directions as the instruction set reads them
    float* heads;      // room for those of the centroids
    float* moves;      // k, to be filled: by how much rounding may have moved the head of each
    uint8_t* in_bytes;  // room for the heads of the centroids in bytes

    int64_t n_numbers() const { return n_directions + 1; }
};

// Rows in lists, each to be compared with some centroids alone.
struct Lists {
    const int32_t* order;    // n_rows: numbers of the rows, list after list
    const int64_t* starts;   // n + 1: where in `order` the rows of each list begin
    const int64_t* members;  // centroids, list after list
    const int64_t* offsets;  // n + 1: where in `members` each list begins
    int64_t n;
};

// Squared distances of rows to a few points, which are given as `centroids`.
template <class T>
struct CompareJob : AssignJob<T> {
    const int64_t* own;     // k, or null: which row each point is, at distance 0 from itself
    const T* closest;       // n_rows, or null without costs: no distance is more than this
    const double* weights;  // n_rows, or null: how much each row counts in a cost
    double* costs;          // k for each part of the rows, to be filled: sums of distances; or null
};

// Sums of rows by their labels.
template <class T>
struct AccumulateJob {
    const T* x;              // rows of n_features
    const double* shares;    // what each row of x is multiplied by, or null for 1
    const int32_t* rows;     // positions in x, cluster after cluster, in the order of rows
    const int64_t* offsets;  // k + 1: where in `rows` each cluster begins
    double* sums;            // k x n_features, to be added to
    int64_t n_features, k;
};

// Sums of rows by their labels as integers, in which the order of addition does not show.
template <class T>
struct FixedJob {
    const T* x;              // rows of n_features
    const double* shares;    // what each row of x is multiplied by, or null for 1
    const int32_t* rows;     // positions in x, cluster after cluster, in the order of rows
    const int64_t* offsets;  // k + 1: where in `rows` each cluster begins
    const int32_t* exponents;  // k + 1: rows of each cluster are less than 2 to this power, and
                               // last the squared distances
    int n_bits;                // whole numbers are less than 2 to this power
    int64_t* sums;           // k x n_features, to be added to; of doubles twice that, since those of
                             // what is left over follow, in units of 2^-n_bits
    int64_t n_window;        // rows of x in all
    int64_t n_features, k;

    double scale(int64_t cluster) const { return std::ldexp(1.0, n_bits - exponents[cluster]); }
    double rest() const { return std::ldexp(1.0, n_bits); }
};

// Sums of float64 in whole numbers of two sizes, for each row of sums a size of its own.
struct GradedJob {
    const double* added;  // k x n_features
    double unit;          // what these are multiplied by first, a power of two
    int64_t* sums;        // 2 x k x n_features: whole numbers of the larger and the smaller size
    int64_t* grades;      // k: the larger size is 2^(GRADE_BITS * grade)
    int64_t k, n_features;
};

// Rows of a window, as they are stored, that become a batch.
template <class T>
struct GatherJob {
    const void* window;     // rows as they are stored
    const int32_t* rows;    // n_rows positions in the window, or null for the first n_rows
    const T* shift;         // n_features, or null: what is subtracted
    const T* factor;        // n_features: what is multiplied by then
    T* x;                   // n_rows x n_features, to be filled; may be the window itself
    T* sq_norms;            // n_rows, to be filled
    int64_t n_rows, n_features;
};

// Squared distances of rows to the centroids of their labels, as sums of squared differences.
template <class T>
struct DistanceJob {
    const T* x;             // n_rows x n_features
    const int64_t* labels;  // n_rows
    const T* centroids;     // k x n_features
    double* sq_distances;   // n_rows, to be filled
    int64_t n_rows, n_features;
};

// Every `stride`-th row of a batch, from `first` on, which is offered to the reservoir.
template <class T>
struct OfferJob {
    const double* uniform;       // n_offered: from 0 to 1, drawn evenly
    const double* sq_distances;  // n_offered: to their centroids
    const int64_t* labels;       // of all rows of the batch, like the next three
    const T* sq_norms;
    const double* weights;       // or null
    const int32_t* positions;    // in x, or null where row follows row
    const T* x;                  // n_window x n_features
    T* rows;                     // n_reservoir x n_features: the reservoir's, like the next three
    double* keys;
    int64_t* row_labels;
    double* row_weights;         // null where `weights` is
    double rounding;             // share of a squared length up to which a squared distance is 0
    int64_t first, stride, n_offered, n_window, n_features, n_reservoir;
    bool is_normalized;
};

// Sums that have grown, and the centroids that follow them.
template <class T>
struct MoveJob {
    double* sums;          // k x n_features: of the rows so far
    const double* kept;    // k, or null: share of its sum that each cluster keeps
    const double* added;   // k x n_features, or null: times `unit`, added to what is kept
    double unit;
    const double* masses;  // k: what sums are divided by, unless it is 0
    const bool* touched;   // k: which centroids move
    T* centroids;          // k x n_features
    double* sq_steps;      // k, to be filled: squared distance that each centroid moved
    double* gains;         // k, to be filled, or null: how much less the squared distances of the
                           // rows, `sums` in all, are to the moved centroid
    int64_t n_features;
    bool spherical;        // whether a centroid is the direction of its sum, not the mean
};

// A step of greedy k-means++: rows are drawn by weight, and the one that leaves the least cost is
// chosen. Of `rows`, those that describe the rows and their weights are given.
template <class T>
struct ChooseJob {
    CompareJob<T> rows;
    T* closest;             // n_rows: squared distances to the nearest chosen row, to be lowered
    double* left;           // n_rows: weights of the rows, 0 for chosen ones, to be updated
    const double* uniform;  // n_trials: from 0 to 1, drawn evenly
    int64_t n_trials;
    double most_steps;      // what the largest weight becomes as an integer
    bool is_first;          // whether to draw by `left` alone
};

// Passes of Lloyd's algorithm over rows in memory.
template <class T>
struct PassesJob {
    AssignJob<T> rows;      // with the centroids to begin from
    const double* shares;   // n_rows, or null: weights divided by `unit`
    const double* weights;  // n_rows, or null where each row weighs 1
    double unit;
    double* masses;         // k, to be filled: weights of each cluster in the last pass
    T* after;               // k x n_features, to be filled: the centroids after it
    double* gains;          // k, to be filled: as in MoveJob
    int64_t n_passes;
    double cost_before;     // of the centroids before those to begin from
    double least_share;     // passes end when one lowers the cost by no more than this share of it;
                            // below 0 they go on whatever they gain
    bool exact;             // whether distances in the last pass are sums of squared differences
    bool rechecks, spherical;
    int n_threads, n_threads_to_add, n_threads_to_move;
};

// A breath: centroids are added, passes are made, as many are removed, and passes are made again.
template <class T>
struct BreathJob {
    PassesJob<T> passes;                // those at the end, but from the centroids before
    const int64_t* labels;              // n_rows: by the centroids before
    const T* sq_distances;              // n_rows: to them
    const double* uniform_of_rows;      // n_rows: from 0 to 1, drawn evenly
    const double* uniform_of_clusters;  // k + size, or null if costs of mergers are not blurred
    int64_t size;                       // centroids that are added
    int64_t n_passes_in;                // passes with them
    int64_t step, most_around;          // of every `step`-th row, how many a mean is taken of
    double slack;                       // times the distance of the last of these: as near as it
    double settled;                     // see `is_settled`; 0 not to ask
    double blur;                        // power of the exponential variables that costs are times
};

// Breaths, one after the other. `first` is the first of them; its labels and squared distances are
// those of `labels` and `sq_distances`.
template <class T>
struct BreathsJob {
    BreathJob<T> first;
    int64_t n_breaths;       // at most
    int64_t stride;          // uniform numbers of each breath: for rows, and then for clusters
    double cost;             // of the centroids before
    double least_share;      // of the cost, by which a breath that is kept lowers it
    double shrunk;           // size of a breath as a share of that of one that was not kept
    int64_t n_refused;       // breaths in a row that were not kept so far
    int64_t tried;           // the number of these after which settled centroids end the breaths
    int64_t patience;        // the number of these after which breaths end
    int64_t* labels;         // n_rows, to be replaced by those of a breath that is kept
    T* sq_distances;         // n_rows, likewise
    T* centroids;            // k x n_features, likewise
};

// Moments of features, from rows as they are stored.
struct MomentsJob {
    const void* x;          // n_rows x n_features
    const double* weights;  // n_rows, or null
    double* counted;        // room for n_rows: what each row counts, 0 where it is left out
    int64_t n_rows, n_features;
};

// The moments of some rows, and room to compute them, in one array.
struct Moments {
    double* count;                            // mass: number of rows, or sum of their weights
    double* n_dropped;                        // rows that are not finite
    double *mean, *m2, *least, *greatest;     // n_features each; m2: squared deviations
    double* strips;                           // room for four strips

    Moments(double* numbers, int64_t n_features)
        : count(numbers), n_dropped(numbers + 1), mean(numbers + 2), m2(mean + n_features),
          least(m2 + n_features), greatest(least + n_features), strips(greatest + n_features) {}
};
