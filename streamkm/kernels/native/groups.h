// Screening by groups of centroids, for one instruction set. Included like bytes.h, after it.
//
// A group has a centre, the mean of its centroids, and a radius, how far the farthest of them lies from
// it. A row is compared with the centres first, and with the centroids of the group whose centre is
// nearest. By the triangle inequality no other group has its nearest centroid if
//     |row - centre| - radius > |row - nearest so far|.
// Both distances are bounds: scores in bytes are known within an error (see bytes.h), and what rounding
// may do is allowed for. So labels are as certain as they are without groups; groups only decide how
// much is compared.
//
// Rows are sorted by the nearest centre, so that those of a block need few groups. For each of these the
// rows that need it make tiles of their own.

// Room for what rounding does to a bound of a group, as shares of its terms, which are sums and roots of
// a few float32 numbers. Errors of scores are allowed for four times, since lengths are added to them.
constexpr float BOUND_SLACK = 1 + 0x1p-16f, SCORE_SLACKS = 4;

// The centroids of a `GroupedJob` in its memory, packed group after group, each in whole panels.
template <class T>
struct PackedGroups {
    ByteCentroids<T> members, centres;

    PackedGroups(const GroupedJob<T>& job)
        : members(job.members, job.n_panels() * BYTE_PANEL, job.rows.n_features),
          centres(job.centres_in_bytes, job.n_groups, job.rows.n_features) {}
};

// Fills the centre and the radius of a group, and where its centroids lie. Returns false if one is too
// long. The radius is NaN if a centroid is not finite: no bound then rules the group out.
template <class T>
bool pack_group(const GroupedJob<T>& job, int64_t group) {
    const AssignJob<T>& rows = job.rows;
    const int64_t d = rows.n_features, first = job.offsets[group], stop = job.offsets[group + 1];
    T* const centre = job.centres + group * d;
    std::vector<double> sums(d);
    for (int64_t i = first; i < stop; ++i) {
        const T* const c = rows.centroids + job.order[i] * d;
        for (int64_t j = 0; j < d; ++j) sums[j] += c[j];
    }
    for (int64_t j = 0; j < d; ++j) centre[j] = static_cast<T>(sums[j] / static_cast<double>(stop - first));
    double most = 0;
    for (int64_t i = first; i < stop; ++i) {
        const double distance = sq_difference(rows.centroids + job.order[i] * d, centre, d);
        if (!(distance <= most)) most = distance;
    }
    job.radii[group] = static_cast<float>(std::sqrt(most)) * BOUND_SLACK;
    const ByteCentroids<T> members(job.members, job.n_panels() * BYTE_PANEL, d);
    bool fits = true;
    for (int64_t panel = job.panels[group]; panel < job.panels[group + 1]; ++panel) {
        const int64_t begin = first + (panel - job.panels[group]) * BYTE_PANEL;
        for (int lane = 0; lane < BYTE_PANEL; ++lane) {
            job.of_lanes[panel * BYTE_PANEL + lane] = begin + lane < stop ? job.order[begin + lane] : 0;
        }
        fits &= pack_lanes(members, d, panel, [&](int lane) -> const T* {
            return begin + lane < stop ? rows.centroids + job.order[begin + lane] * d : nullptr;
        });
    }
    return fits;
}

// Packs the centres of groups, which must be filled, from panel `panel` of them.
template <class T>
void pack_centres(const GroupedJob<T>& job, int64_t panel) {
    const int64_t d = job.rows.n_features;
    pack_lanes(PackedGroups<T>(job).centres, d, panel, [&](int lane) -> const T* {
        const int64_t group = panel * BYTE_PANEL + lane;
        return group < job.n_groups ? job.centres + group * d : nullptr;
    });
    for (int lane = 0; lane < BYTE_PANEL; ++lane) {
        const int64_t group = panel * BYTE_PANEL + lane;
        if (group >= job.n_groups) job.radii[group] = 0;
    }
}

// A row of a block and a group that may have its nearest centroid.
struct Pair {
    int32_t group, row;
    float low;  // the least that the squared distance of the row and the centre can be
};

// Room of one thread for the rows of a block.
template <class T>
struct GroupRoom : ByteRoom<T> {
    std::vector<float> to_centres;  // scores of a tile: stretch after stretch of centres, row after row
    std::vector<float> sq_lengths;  // of rows
    std::vector<int32_t> own_words;  // of a tile that is made of rows that need a group
    std::vector<Pair> pairs, sorted;
    std::vector<int32_t> ends;  // of the pairs of each group
};

// Rows of a block: few enough that they stay in a cache, many enough that those of a group fill tiles.
inline int64_t group_block_rows(int64_t n_features) {
    constexpr int64_t CACHED = 256 << 10, MOST_TILES = 64;
    return std::clamp<int64_t>(CACHED / sizeof(Number) / std::max<int64_t>(n_features, 1) / TILE_ROWS, 1, MOST_TILES) * TILE_ROWS;
}

// Scores a tile of rows against all centres. Fills the least score of each row.
template <class T>
INLINE void score_centres(const GroupedJob<T>& job, const ByteCentroids<T>& centres, const int32_t* words,
                          const ByteTile& tile, float* scores, Floats (&least)[TILE_ROWS]) {
    for (Floats& one : least) one = Floats{} + std::numeric_limits<float>::infinity();
    const int64_t n_panels = parts_of(job.n_groups, BYTE_PANEL);
    for (int64_t panel = 0; panel < n_panels; ++panel) {
        float* const of_panel =
            scores + panel / STRETCH_PANELS * TILE_ROWS * STRIDE + panel % STRETCH_PANELS * BYTE_PANEL;
        screen_panel<PANEL_VECTORS>(centres, words, panel, Upcoming<T>{}, tile, of_panel, least);
    }
}

template <class T>
INLINE void make_group_room(const GroupedJob<T>& job, int64_t n_rows, GroupRoom<T>& room) {
    const int64_t n_tiles = parts_of(n_rows, TILE_ROWS), n_words = parts_of(job.rows.n_features, PER_WORD);
    room.words.resize(n_tiles * TILE_ROWS * n_words);
    room.own_words.resize(TILE_ROWS * n_words);
    room.shifted.resize(parts_of(job.rows.n_features, 16) * 16);
    room.candidates.resize(n_tiles * TILE_ROWS);
    room.sq_lengths.resize(n_tiles * TILE_ROWS);
    room.tiles.resize(n_tiles);
    room.scores.resize(TILE_ROWS * STRIDE);
    room.to_centres.resize(parts_of(job.n_groups, STRETCH) * TILE_ROWS * STRIDE);
}

// Fills the group of each of rows `start` to `stop`, that whose centre is about the nearest.
template <class T>
void find_groups(const GroupedJob<T>& job, int64_t start, int64_t stop) {
    static thread_local GroupRoom<T> room;
    make_group_room(job, TILE_ROWS, room);
    const PackedGroups<T> packed(job);
    for (int64_t tile = start; tile < stop; tile += TILE_ROWS) {
        begin_tile(job.rows, packed.centres, tile, stop, room.shifted.data(), room.words.data(), room.tiles[0],
                   room.candidates.data());
        Floats least[TILE_ROWS];
        score_centres(job, packed.centres, room.words.data(), room.tiles[0], room.to_centres.data(), least);
        for (int64_t row = tile; row < std::min<int64_t>(tile + TILE_ROWS, stop); ++row) {
            const Floats lowest = Floats{} + least_of(least[row - tile]);
            int64_t found = 0;
            for (int64_t i = 0; i < job.n_groups; i += BYTE_LANES) {
                const float* const scores = room.to_centres.data() + i / STRETCH * TILE_ROWS * STRIDE +
                                            (row - tile) * STRIDE + i % STRETCH;
                const uint32_t lanes = lanes_at_most(Simd<float>::load(scores), lowest);
                if (lanes == 0) continue;
                found = i + __builtin_ctz(lanes);
                break;
            }
            job.of_rows[row] = static_cast<int32_t>(std::min(found, job.n_groups - 1));
        }
    }
}

// Screens a tile of rows against the centroids of one group. Returns how many comparisons that are.
template <class T, class OfRows>
INLINE int64_t screen_group(const GroupedJob<T>& job, const AssignJob<T>& lanes, const ByteCentroids<T>& members,
                            int64_t group, const int32_t* words, ByteTile& of_tile, float* scores,
                            const OfRows& candidates) {
    const int64_t stop = job.panels[group + 1];
    for (int64_t panel = job.panels[group]; panel < stop; panel += STRETCH_PANELS) {
        screen_stretch(lanes, members, words, 0, false, panel, std::min(panel + STRETCH_PANELS, stop), of_tile,
                       scores, candidates);
    }
    return (stop - job.panels[group]) * BYTE_PANEL * TILE_ROWS;
}

// How far the nearest centroid of a row may be.
template <class T>
INLINE float reach_of(const GroupedJob<T>& job, const ByteTile& tile, int row, float sq_length) {
    const float d = static_cast<float>(job.rows.n_features);
    // (Squared lengths are sums in float32.)
    const float sq_reach = tile.limits[row] + sq_length * (1 + (d / 8 + 16) * 0x1p-24f) + SCORE_SLACKS * tile.slacks[row];
    return (sq_reach > 0 ? std::sqrt(sq_reach) : 0) + VANISHED * std::sqrt(d);
}

// Adds pairs of the rows of a tile and the groups that may have the nearest centroid. Left out are the
// groups of the tile's rows, `own`, and rows that cannot be screened.
template <class T>
INLINE void pair_tile(const GroupedJob<T>& job, const ByteCentroids<T>& centres, const float* scores,
                      const ByteTile& tile, const float* sq_lengths, const int32_t* own, int first_row, int n_rows,
                      std::vector<Pair>& pairs) {
    const float rounding = static_cast<float>(job.rows.n_features / 8 + 16) * 0x1p-24f;
    float reaches[TILE_ROWS], lows[TILE_ROWS];
    for (int row = 0; row < n_rows; ++row) {
        reaches[row] = reach_of(job, tile, row, sq_lengths[row]);
        lows[row] = sq_lengths[row] * (1 - rounding) - SCORE_SLACKS * tile.slacks[row];
    }
    for (int64_t i = 0; i < job.n_groups; i += BYTE_LANES) {
        const Floats lengths = Simd<float>::load(centres.lengths + i), rests = Simd<float>::load(centres.rests + i);
        const Floats slacks = Simd<float>::load(centres.slacks + i) * SCORE_SLACKS;
        const Floats radii = Simd<float>::load(job.radii + i);
        const float* const of_stretch = scores + i / STRETCH * TILE_ROWS * STRIDE + i % STRETCH;
        const uint32_t lanes = job.n_groups - i < BYTE_LANES ? (1u << (job.n_groups - i)) - 1 : (1u << BYTE_LANES) - 1;
        for (int row = 0; row < n_rows; ++row) {
            if (tile.limits[row] == -std::numeric_limits<float>::infinity()) continue;
            const Floats low = Simd<float>::load(of_stretch + row * STRIDE) + lows[row] - slacks -
                               lengths * tile.rests[row] - rests * tile.lengths[row];
            const Floats reach = (radii + reaches[row]) * BOUND_SLACK, sq_reach = reach * reach;
            // Ruled out is what is certainly more, not what is no number.
            uint32_t live = lanes & ~(lanes_at_most(sq_reach, low) & ~lanes_at_most(low, sq_reach));
            for (; live != 0; live &= live - 1) {
                const int lane = __builtin_ctz(live);
                const int32_t group = static_cast<int32_t>(i + lane);
                if (std::find(own, own + n_rows, group) == own + n_rows) pairs.push_back({group, first_row + row, low[lane]});
            }
        }
    }
}

// Makes a tile of the rows of a block that still need a group, from `pairs`, and screens it. Returns how
// many comparisons that were.
template <class T>
INLINE int64_t screen_pairs(const GroupedJob<T>& job, const AssignJob<T>& lanes, const ByteCentroids<T>& members,
                            GroupRoom<T>& room, const Pair*& pair, const Pair* last) {
    const int64_t group = pair->group;
    int32_t numbers[TILE_ROWS];
    int n = 0;
    ByteTile own;
    Candidates* candidates[TILE_ROWS];
    for (; pair < last && n < TILE_ROWS; ++pair) {
        const int32_t row = pair->row;
        const ByteTile& tile = room.tiles[row / TILE_ROWS];
        const float reach = (job.radii[group] + reach_of(job, tile, row % TILE_ROWS, room.sq_lengths[row])) * BOUND_SLACK;
        if (pair->low > reach * reach) continue;  // Another group has a nearer centroid since.
        numbers[n++] = row;
    }
    if (n == 0) return 0;
    for (int place = 0; place < TILE_ROWS; ++place) {
        // Spare places hold the last row again, with no centroid near.
        const int32_t row = numbers[std::min(place, n - 1)];
        const ByteTile& tile = room.tiles[row / TILE_ROWS];
        const int from = row % TILE_ROWS;
        own.limits[place] = place < n ? tile.limits[from] : -std::numeric_limits<float>::infinity();
        own.lengths[place] = tile.lengths[from];
        own.rests[place] = tile.rests[from];
        own.slacks[place] = tile.slacks[from];
        own.scales[place] = tile.scales[from];
        own.starts[place] = tile.starts[from];
        candidates[place] = room.candidates.data() + row;
    }
    for (int place = 0; place < n; ++place) {
        const int32_t row = numbers[place];
        const int32_t* const words =
            room.words.data() + row / TILE_ROWS * TILE_ROWS * members.n_words + row % TILE_ROWS;
        for (int64_t word = 0; word < members.n_words; ++word) {
            room.own_words[word * TILE_ROWS + place] = words[word * TILE_ROWS];
        }
    }
    const auto of_rows = [&](int place) -> Candidates& { return *candidates[place]; };
    const int64_t n_compared =
        screen_group(job, lanes, members, group, room.own_words.data(), own, room.scores.data(), of_rows);
    for (int place = 0; place < n; ++place) {
        room.tiles[numbers[place] / TILE_ROWS].limits[numbers[place] % TILE_ROWS] = own.limits[place];
    }
    return n_compared;
}

// Like `assign_bytes`, by groups, for rows that are sorted by them. `n_compared` grows by the comparisons
// of rows with centroids.
template <class T>
int64_t assign_groups(const GroupedJob<T>& job, const AssignJob<T>& rows, const int32_t* groups, int64_t start,
                      int64_t stop, int64_t& n_uncertain, int64_t& n_compared) {
    static thread_local GroupRoom<T> room;
    make_group_room(job, stop - start, room);
    const PackedGroups<T> packed(job);
    AssignJob<T> lanes = rows;
    lanes.k = job.n_panels() * BYTE_PANEL;
    room.pairs.clear();
    for (int64_t tile = start; tile < stop; tile += TILE_ROWS) {
        const int n_rows = static_cast<int>(std::min<int64_t>(TILE_ROWS, stop - tile));
        ByteTile& of_tile = room.tiles[(tile - start) / TILE_ROWS];
        int32_t* const words = room.words.data() + (tile - start) * packed.members.n_words;
        float* const sq_lengths = room.sq_lengths.data() + (tile - start);
        Candidates* const candidates = room.candidates.data() + (tile - start);
        begin_tile(rows, packed.members, tile, stop, room.shifted.data(), words, of_tile, candidates, sq_lengths);
        for (int row = 0; row < n_rows; ++row) {
            if (row > 0 && groups[tile + row] == groups[tile + row - 1]) continue;
            const auto of_rows = [&](int each) -> Candidates& { return candidates[each]; };
            // (Some rows of the tile may be of another group: what is found there is as true.)
            n_compared += screen_group(job, lanes, packed.members, groups[tile + row], words, of_tile,
                                       room.scores.data(), of_rows);
        }
        Floats least[TILE_ROWS];
        score_centres(job, packed.centres, words, of_tile, room.to_centres.data(), least);
        pair_tile(job, packed.centres, room.to_centres.data(), of_tile, sq_lengths, groups + tile,
                  static_cast<int>(tile - start), n_rows, room.pairs);
    }
    room.ends.assign(job.n_groups + 1, 0);
    for (const Pair& pair : room.pairs) ++room.ends[pair.group + 1];
    std::partial_sum(room.ends.begin(), room.ends.end(), room.ends.begin());
    room.sorted.resize(room.pairs.size());
    for (const Pair& pair : room.pairs) room.sorted[room.ends[pair.group]++] = pair;
    const Pair* pair = room.sorted.data();
    for (int64_t group = 0; group < job.n_groups; ++group) {
        const Pair* const last = room.sorted.data() + room.ends[group];
        while (pair < last) n_compared += screen_pairs(job, lanes, packed.members, room, pair, last);
    }
    int64_t n_candidates = 0;
    return settle_rows(rows, start, stop, room.tiles.data(), room.candidates.data(), n_uncertain, n_candidates,
                       [&](int64_t lane) { return job.of_lanes[lane]; });
}
