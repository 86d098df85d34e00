// What the module asks of an instruction set, in plain pointers and sizes.

#pragma once

#include <cstdint>

// Rows are scored in blocks, each by one thread: few enough that their running bests stay
// in the cache of a core, enough that centroids are read from memory seldom.
constexpr int TILES_PER_BLOCK = 16;
// So much of the packed centroids is compared with one block before the next is taken up:
// what the second level of cache of a core holds beside the rows.
constexpr int64_t GROUP_BYTES = 256 << 10;
// Other work is divided into parts of so many rows, whatever the instruction set.
constexpr int64_t PART_ROWS = 256;

// Nearest centroids of rows. All arrays lie row by row without gaps.
template <class T>
struct AssignJob {
    const T* x;                // n_rows x n_features, or the window that `positions` point into
    const int32_t* positions;  // n_rows, or null where row follows row
    T* sq_norms;               // n_rows; to be filled where `dropped` is there
    const T* centroids;        // k x n_features
    T* packed;           // room for the centroids as the instruction set reads them
    T* c_sq;             // room for their squared lengths
    int64_t* labels;     // n_rows, to be filled
    T* sq_distances;     // n_rows, to be filled: |x|^2 and the least |c|^2 - 2 x.c
    bool* uncertain;     // n_rows, to be filled: whether rounding may have decided the label
    int64_t n_rows, n_features, k;
    T rounding;    // error of a score, as a share of (|x| + |c|)^2
    T longest_sq;  // squared length of the longest centroid, found on the way
    T* second_sq_distances;  // n_rows, or null: the same for the second least score
    bool* dropped;           // n_rows, or null: whether the squared length is not within the most
    const T* zeros;          // n_features: what is taken for such a row
    double* exact;           // n_rows, or null: squared distances as sums of squared differences
    T most_sq_norm;

    const T* given(int64_t number) const {
        return x + (positions ? positions[number] : number) * n_features;
    }
    // The same, once it is known whether it is dropped.
    const T* row(int64_t number) const {
        return dropped && dropped[number] ? zeros : given(number);
    }
};

// Squared distances of rows to a few points, which stand in the place of centroids.
template <class T>
struct CompareJob : AssignJob<T> {
    const int64_t* own;     // k, or null: which row a point is, at distance 0 from itself
    const T* closest;       // n_rows, or null: no distance is more than this
    const double* weights;  // n_rows, or null: how much each row counts in a cost
    double* costs;          // k for each part of the rows, to be filled: sums of distances; or null
};

// Sums of rows by their labels.
template <class T>
struct AccumulateJob {
    const T* x;              // rows of n_features
    const int32_t* rows;     // where they are in x, cluster after cluster, in order
    const int64_t* offsets;  // k + 1: where in `rows` each cluster begins
    T* sums;                 // k x n_features, to be added to
    int64_t n_features, k;
};

// Rows on their way from a window, as they are stored, to a batch.
template <class T>
struct GatherJob {
    const void* window;     // rows as they are stored
    const int32_t* rows;    // n_rows positions in the window, or null for the first n_rows
    const T* shift;         // n_features, or null: what is subtracted
    const T* factor;        // n_features: what is multiplied with then
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

// Candidates for the places of centroids.
template <class T>
struct SwapJob {
    const T* sq_distances;   // of each candidate n_rows, to every row
    const T* first;          // n_rows: to the nearest centroid
    const T* second;         // n_rows: to the next
    const int64_t* labels;   // n_rows: which the nearest is
    const double* weights;   // n_rows, or null
    double* gains;           // of each candidate k, to be filled: by how much the cost falls
    int64_t n_rows, k;
};

// Every so many-th row of a batch, offered to the reservoir.
template <class T>
struct OfferJob {
    const double* uniform;       // n_offered: between 0 and 1
    const double* sq_distances;  // n_offered: from their centroids
    const int64_t* labels;       // of all rows of the batch, as are the next three
    const T* sq_norms;
    const double* weights;       // or null
    const int32_t* positions;    // in x, or null where row follows row
    const T* x;                  // n_window x n_features
    T* rows;                     // n_reservoir x n_features, with their keys, labels and weights
    double* keys;
    int64_t* row_labels;
    double* row_weights;         // null where `weights` is
    double rounding;             // share of a squared length that a row may be from its centroid
    int64_t first, stride, n_offered, n_window, n_features, n_reservoir, most_drawn;
    bool is_normalized;
};

// Clusters whose sums have grown, and their centroids, which follow.
template <class T>
struct MoveJob {
    double* sums;          // k x n_features: of all rows so far
    const T* added;        // k x n_features in `unit`, or null: what is added to them first
    double unit;
    const double* masses;  // k: what sums are divided by, unless it is 0
    const bool* touched;   // k: which centroids move
    T* centroids;          // k x n_features
    double* sq_steps;      // k, to be filled: how far each went
    int64_t n_features;
    bool spherical;        // to the directions of their sums instead
};

// Moments of features, by rows as they are stored.
struct MomentsJob {
    const void* x;          // n_rows x n_features
    const double* weights;  // n_rows, or null
    double* counted;        // room for n_rows: what each row counts, 0 where it is left out
    int64_t n_rows, n_features;
};

// Where the moments of some rows are put, and room for finding them.
struct Moments {
    double* count;                            // of rows, or of their weights
    double* n_dropped;                        // rows that are not finite
    double *mean, *m2, *least, *greatest;     // n_features each; m2: squared deviations
    double* strips;                           // room for four strips

    Moments(double* numbers, int64_t n_features)
        : count(numbers), n_dropped(numbers + 1), mean(numbers + 2), m2(mean + n_features),
          least(m2 + n_features), greatest(least + n_features), strips(greatest + n_features) {}
};
