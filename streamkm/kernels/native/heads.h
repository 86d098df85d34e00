// Screening by heads of points, for one instruction set. Included like bytes.h, after it.
//
// Points, less one in their middle, are turned so that a few directions carry most of what tells them
// apart. The head of a point is what it measures along these, and as one number more the length of its
// tail, which is all that is left. Heads are never farther apart than points are (Cauchy and Schwarz, for
// the tails):
//     |head of x - head of c| <= |x - c|
// So a centroid whose head is farther away than some centroid is itself cannot be the nearest. Heads are
// screened in bytes as points are, with less to multiply. By how much arithmetic may have moved a head
// counts as what rounding to bytes took away. The directions decide how much is compared, and no label.
//
// Rejected: directions of the features as they are, which rule out little; and a tile of centroids at a
// time with the other features still to come, since of a tile one is near (bench/LOG.md).

// Numbers from one head to the next, as `project` fills them.
inline int64_t head_stride(int64_t n_directions) {
    return parts_of(n_directions, BYTE_PANEL) * BYTE_PANEL + BYTE_LANES;
}

// Numbers from one row to the next of those that are projected together: not a power of two, or they
// would share a few places of a cache.
inline int64_t shifted_stride(int64_t n_features) { return parts_of(n_features, 16) * 16 + 16; }

template <class T>
int64_t head_bytes(const HeadJob<T>& job) {
    return ByteCentroids<float>::n_bytes(job.rows.k, job.n_numbers());
}

template <class T>
int64_t head_numbers(const HeadJob<T>& job) {
    return head_stride(job.n_directions);
}

template <class T>
ByteCentroids<float> packed_heads(const HeadJob<T>& job) {
    return ByteCentroids<float>(job.in_bytes, job.rows.k, job.n_numbers());
}

// Fills the packed directions: panel after panel, feature after feature, lane after lane.
template <class T>
void pack_directions(const HeadJob<T>& job) {
    const int64_t d = job.rows.n_features, n_lanes = parts_of(job.n_directions, BYTE_PANEL) * BYTE_PANEL;
    for (int64_t lane = 0; lane < n_lanes; ++lane) {
        float* const to = job.packed + lane / BYTE_PANEL * BYTE_PANEL * d + lane % BYTE_PANEL;
        for (int64_t i = 0; i < d; ++i) {
            to[i * BYTE_PANEL] = lane < job.n_directions ? job.directions[lane * d + i] : 0;
        }
    }
}

// Fills the heads of points, and by how much each may have been moved. `shifted` has room for them.
template <class T>
INLINE void project(const HeadJob<T>& job, const T* const (&points)[TILE_ROWS], float* __restrict shifted,
                    float* __restrict heads, float* moves) {
    const int64_t d = job.rows.n_features, m = job.n_directions, from = shifted_stride(d), to = head_stride(m);
    for (int row = 0; row < TILE_ROWS; ++row) {
        for (int64_t i = 0; i < d; ++i) shifted[row * from + i] = static_cast<float>(points[row][i] - job.middle[i]);
    }
    const float* packed = job.packed;
    for (int64_t lane = 0; lane < m; lane += BYTE_PANEL) {
        Floats sums[TILE_ROWS][PANEL_VECTORS] = {};
        for (int64_t i = 0; i < d; ++i, packed += BYTE_PANEL) {
            Floats of_lanes[PANEL_VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < PANEL_VECTORS; ++v) of_lanes[v] = Simd<float>::load(packed + v * BYTE_LANES);
#pragma GCC unroll 16
            for (int row = 0; row < TILE_ROWS; ++row) {
#pragma GCC unroll 4
                for (int v = 0; v < PANEL_VECTORS; ++v) sums[row][v] += of_lanes[v] * shifted[row * from + i];
            }
        }
        for (int row = 0; row < TILE_ROWS; ++row) {
            for (int v = 0; v < PANEL_VECTORS; ++v) {
                Simd<float>::store(heads + row * to + lane + v * BYTE_LANES, sums[row][v]);
            }
        }
    }
    // Along each direction a sum of d products errs by d roundings of the point's length (Higham 2002,
    // section 3.1), and the point itself was rounded; directions are as far from orthonormal ones as `skew`.
    const double share = 1.01 * (std::sqrt(static_cast<double>(m)) * static_cast<double>(d + 2) * 0x1p-24 + job.skew + 0x1p-22);
    const double of_squares = share * (2 + share) + 0x1p-40;
    for (int row = 0; row < TILE_ROWS; ++row) {
        float* const head = heads + row * to;
        const double sq = sq_length(shifted + row * from, d), tail = std::sqrt(std::max(sq - sq_length(head, m), 0.0));
        // How far off the square of a tail may be tells how far off a tail may be.
        const double length = std::sqrt(sq), of_tail = std::min(std::sqrt(of_squares) * length, of_squares * sq / tail);
        head[m] = static_cast<float>(tail);
        moves[row] = static_cast<float>(1.01 * (share * length + (tail > 0 ? of_tail : std::sqrt(of_squares) * length)));
        // What is not finite, or too long, is so in its head.
        if (!(sq <= LONGEST_SQ)) {
            const bool is_nan = std::isnan(sq);
            head[0] = is_nan ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
            moves[row] = 0;
        }
    }
}

// Fills the heads of a tile of centroids.
template <class T>
void project_centroids(const HeadJob<T>& job, int64_t tile) {
    const int64_t d = job.rows.n_features, to = head_stride(job.n_directions), first = tile * TILE_ROWS;
    std::vector<float> shifted(TILE_ROWS * shifted_stride(d)), heads(TILE_ROWS * to);
    float moves[TILE_ROWS];
    const T* points[TILE_ROWS];
    const int64_t n = std::min<int64_t>(job.rows.k - first, TILE_ROWS);
    for (int row = 0; row < TILE_ROWS; ++row) points[row] = job.rows.centroids + (first + std::min<int64_t>(row, n - 1)) * d;
    project(job, points, shifted.data(), heads.data(), moves);
    std::copy_n(heads.data(), n * to, job.heads + first * to);
    std::copy_n(moves, n, job.moves + first);
}

// Fills the point in the middle of the heads of centroids: their mean, or of some of them.
template <class T>
void find_head_centre(const HeadJob<T>& job) {
    constexpr int64_t MOST = 1024;
    const int64_t stride = parts_of(job.rows.k, MOST), n = job.n_numbers(), to = head_stride(job.n_directions);
    std::vector<double> sums(n);
    double n_added = 0;
    for (int64_t i = 0; i < job.rows.k; i += stride) {
        const float* const head = job.heads + i * to;
        if (!std::isfinite(sq_length(head, n))) continue;
        for (int64_t j = 0; j < n; ++j) sums[j] += head[j];
        ++n_added;
    }
    float* const centre = packed_heads(job).centre;
    for (int64_t j = 0; j < n; ++j) centre[j] = static_cast<float>(sums[j] / std::max(n_added, 1.0));
}

// Packs the heads of the centroids of one panel. Returns false if one is too long.
template <class T>
bool pack_heads(const HeadJob<T>& job, int64_t panel) {
    const ByteCentroids<float> all = packed_heads(job);
    const int64_t first = panel * BYTE_PANEL, to = head_stride(job.n_directions);
    const bool fits = pack_lanes(all, job.n_numbers(), panel, [&](int lane) -> const float* {
        return first + lane < job.rows.k ? job.heads + (first + lane) * to : nullptr;
    });
    for (int64_t i = first; i < std::min(first + BYTE_PANEL, job.rows.k); ++i) {
        if (!(all.sq_lengths[i] <= LONGEST_SQ)) continue;
        all.rests[i] += 2 * LENGTH_SLACK * job.moves[i];
        all.slacks[i] += LENGTH_SLACK * (2 * std::sqrt(all.sq_lengths[i]) + job.moves[i]) * job.moves[i];
        all.panel_rest[panel] = std::max(all.panel_rest[panel], all.rests[i]);
        all.panel_slack[panel] = std::max(all.panel_slack[panel], all.slacks[i]);
    }
    return fits;
}

// Room of one thread for the rows of a block.
template <class T>
struct HeadRoom : ByteRoom<T> {
    std::vector<float> points, heads;  // of a tile: less the middle, and turned
    std::vector<double> lows;  // of rows: the least that the squared length of the head can be, less the centre
};

// Turns the rows of a tile into heads, and these into bytes.
template <class T>
INLINE void begin_heads(const HeadJob<T>& job, const ByteCentroids<float>& all, int64_t tile, int64_t stop,
                        int32_t* words, ByteTile& of_tile, Candidates* candidates, double* lows, HeadRoom<T>& room) {
    const int n_rows = static_cast<int>(std::min<int64_t>(stop - tile, TILE_ROWS));
    const T* located[TILE_ROWS];
    locate_tile(job.rows, tile, stop, located);
    for (int row = n_rows; row < TILE_ROWS; ++row) located[row] = located[n_rows - 1];
    float moves[TILE_ROWS], sq_lengths[TILE_ROWS];
    project(job, located, room.points.data(), room.heads.data(), moves);
    const float* heads[TILE_ROWS];
    for (int row = 0; row < TILE_ROWS; ++row) heads[row] = room.heads.data() + row * head_stride(job.n_directions);
    fill_tile(all, heads, n_rows, job.n_numbers(), job.rows.k, room.shifted.data(), words, of_tile, candidates, sq_lengths);
    const double rounding = (static_cast<double>(job.n_numbers()) / 8 + 16) * 0x1p-24;  // of a sum in float32
    for (int row = 0; row < n_rows; ++row) {
        of_tile.rests[row] += moves[row];
        of_tile.lengths[row] += moves[row];
        const double length = std::sqrt(sq_lengths[row] * (1 - rounding)) - moves[row];
        lows[row] = length > 0 ? length * length : 0;
    }
}

// Lowers the limit of a row by the distance of the centroid that has `score`, the least of the `n` scores
// of centroids from `first` on.
template <class T>
INLINE void reach(const HeadJob<T>& job, int64_t row, const float* scores, float score, int64_t first, int64_t n,
                  double low, float& limit) {
    const AssignJob<T>& rows = job.rows;
    int64_t index = first;
    for (int64_t i = 0; i < n; i += BYTE_LANES) {
        const uint32_t lanes = lanes_at_most(Simd<float>::load(scores + i), Floats{} + score);
        if (lanes == 0) continue;
        index = first + i + __builtin_ctz(lanes);
        break;
    }
    const double d = static_cast<double>(rows.n_features);
    const double sq_distance = about_sq_difference(rows.row(row), rows.centroids + index * rows.n_features, rows.n_features) *
                               (1 + (d / BYTE_LANES + 16) * 0x1p-23) + d * 0x1p-120;
    limit = std::min(limit, static_cast<float>(sq_distance - low + (sq_distance + low) * 0x1p-20));
}

// Scores a tile of rows against the heads in the panels from `first` to `last`, and takes up centroids
// that may be the nearest. Returns how many distances were taken.
template <class T>
INLINE int64_t screen_heads(const HeadJob<T>& job, const ByteCentroids<float>& all, const int32_t* words,
                            int64_t tile, int64_t first, int64_t last, ByteTile& of_tile, const double* lows,
                            float* scores, Candidates* candidates) {
    Floats least[TILE_ROWS];
    for (Floats& one : least) one = Floats{} + std::numeric_limits<float>::infinity();
    float length = 0, rest = 0, slack = 0;
    for (int64_t panel = first; panel < last; ++panel) {
        screen_panel<PANEL_VECTORS>(all, words, panel, Upcoming<float>{}, of_tile, scores + (panel - first) * BYTE_PANEL, least);
        length = std::max(length, all.panel_length[panel]);
        rest = std::max(rest, all.panel_rest[panel]);
        slack = std::max(slack, all.panel_slack[panel]);
    }
    const int64_t n = (last - first) * BYTE_PANEL;
    int64_t n_taken = 0;
    for (int row = 0; row < TILE_ROWS; ++row) {
        const float error = length * of_tile.rests[row] + rest * of_tile.lengths[row] + slack + of_tile.slacks[row];
        const float lowest = least_of(least[row]);
        if (!(lowest - error <= of_tile.limits[row])) continue;
        const float* const of_row = scores + row * STRIDE;
        if (lowest < of_tile.firsts[row]) {
            // About the nearest so far: how near it is tells which others may be nearer.
            of_tile.firsts[row] = lowest;
            reach(job, tile + row, of_row, lowest, first * BYTE_PANEL, n, lows[row], of_tile.limits[row]);
            ++n_taken;
        }
        note<true>(all, of_row, first * BYTE_PANEL, n, error, of_tile, row, candidates[row]);
    }
    return n_taken;
}

// Like `assign_bytes`, by heads.
template <class T>
int64_t assign_heads(const HeadJob<T>& job, int64_t start, int64_t stop, int64_t& n_uncertain, int64_t& n_compared) {
    static thread_local HeadRoom<T> room;
    const AssignJob<T>& rows = job.rows;
    const ByteCentroids<float> all = packed_heads(job);
    const int64_t n_tiles = parts_of(stop - start, TILE_ROWS);
    room.words.resize(n_tiles * TILE_ROWS * row_words(all.n_words));
    room.points.resize(TILE_ROWS * shifted_stride(rows.n_features));
    room.heads.resize(TILE_ROWS * head_stride(job.n_directions));
    room.shifted.resize(parts_of(job.n_numbers(), 16) * 16);
    room.lows.resize(n_tiles * TILE_ROWS);
    room.candidates.resize(n_tiles * TILE_ROWS);
    room.tiles.resize(n_tiles);
    room.scores.resize(TILE_ROWS * STRIDE);
    const int64_t n_panels = parts_of(rows.k, BYTE_PANEL), panel_bytes = BYTE_PANEL * 4 * all.n_words;
    const int64_t group = std::max<int64_t>(GROUP_BYTES / panel_bytes, 1);
    for (int64_t first = 0; first < n_panels; first += group) {
        const int64_t last = std::min(first + group, n_panels);
        for (int64_t tile = start; tile < stop; tile += TILE_ROWS) {
            ByteTile& of_tile = room.tiles[(tile - start) / TILE_ROWS];
            Candidates* const candidates = room.candidates.data() + (tile - start);
            int32_t* const words = room.words.data() + (tile - start) * row_words(all.n_words);
            double* const lows = room.lows.data() + (tile - start);
            if (first == 0) begin_heads(job, all, tile, stop, words, of_tile, candidates, lows, room);
            for (int64_t panel = first; panel < last; panel += STRETCH_PANELS) {
                n_compared += screen_heads(job, all, words, tile, panel, std::min(panel + STRETCH_PANELS, last),
                                           of_tile, lows, room.scores.data(), candidates);
            }
        }
    }
    return settle_rows(rows, start, stop, room.tiles.data(), room.candidates.data(), n_uncertain, n_compared,
                       [](int64_t index) { return index; });
}
