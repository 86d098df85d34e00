// Screening in whole numbers of eight bits, for one instruction set that multiplies them; or in those of
// sixteen bits, for one that does not.
//
// dispatch.h includes it once for each such set, in a namespace of its own, with VECTOR_BYTES, TILE_ROWS
// and PER_WORD, the numbers that 32 bits hold, defined and the functions of tiles.h and rows.h in reach.
// An instruction multiplies four times as many bytes as floats. Two instructions multiply twice as many
// numbers of sixteen bits and add them, and a processor makes as many of these at a time: that is half
// the time, and so exact that hardly a row is left with several centroids. With SEGMENT_WORDS defined,
// the products of bytes are added up in sixteen bits, over as many words: that is a third of the time.
//
// "Bytes" below are numbers of either size. Rows and centroids, less a point in their middle, become bytes times a scale of their own. What
// rounding took away is a vector of known length, so the score of a centroid is known within
//     2 (|row's rest| |centroid in bytes| + |row| |centroid's rest|)
// (Cauchy and Schwarz). No centroid whose score less this is above the least score plus this can be
// the nearest. Those that remain, one or two in the usual case, are compared by sums of squared
// differences in float64. Nothing here is likely: labels are certain.
//
// Rejected: bfloat16, which leaves fewer in doubt but multiplies half as fast (bench/LOG.md).

#if VECTOR_BYTES == 64
INLINE void add_products(typename Simd<float>::IndexVector& sums, const uint8_t* centroids, int32_t row) {
    sums = (typename Simd<float>::IndexVector)_mm512_dpbusd_epi32(
        (__m512i)sums, _mm512_loadu_si512(centroids), _mm512_set1_epi32(row));
}
INLINE uint32_t lanes_at_most(const typename Simd<float>::Vector& a, const typename Simd<float>::Vector& b) {
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
}
INLINE float least_of(const typename Simd<float>::Vector& a) { return _mm512_reduce_min_ps((__m512)a); }
INLINE float sum_of_lanes(const typename Simd<float>::Vector& a) { return _mm512_reduce_add_ps((__m512)a); }
#else
INLINE void add_products(typename Simd<float>::IndexVector& sums, const uint8_t* centroids, int32_t row) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(centroids));
#if defined(SEGMENT_WORDS)
    sums = (typename Simd<float>::IndexVector)_mm256_add_epi16(
        (__m256i)sums, _mm256_maddubs_epi16(bytes, _mm256_set1_epi32(row)));
#elif PER_WORD == 4
    sums = (typename Simd<float>::IndexVector)_mm256_dpbusd_avx_epi32((__m256i)sums, bytes,
                                                                       _mm256_set1_epi32(row));
#else
    sums += (typename Simd<float>::IndexVector)_mm256_madd_epi16(bytes, _mm256_set1_epi32(row));
#endif
}
INLINE uint32_t lanes_at_most(const typename Simd<float>::Vector& a, const typename Simd<float>::Vector& b) {
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LE_OQ));
}
INLINE float least_of(const typename Simd<float>::Vector& a) {
    __m128 least = _mm_min_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    least = _mm_min_ps(least, _mm_movehl_ps(least, least));
    return _mm_cvtss_f32(_mm_min_ss(least, _mm_movehdup_ps(least)));
}
INLINE float sum_of_lanes(const typename Simd<float>::Vector& a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
#endif

#if defined(SEGMENT_WORDS)
// Of how many numbers half of each word of a segment are.
constexpr float SQRT_OF_HALF = SEGMENT_WORDS == 8 ? 4 : 5.656855f;
static_assert(SEGMENT_WORDS == 8 || SEGMENT_WORDS == 16);
#endif

using Floats = typename Simd<float>::Vector;
using Integers = typename Simd<float>::IndexVector;
constexpr int BYTE_LANES = Simd<float>::width, BYTE_PANEL = PANEL_VECTORS * BYTE_LANES, TILE_HEIGHT = TILE_ROWS;

#if defined(SEGMENT_WORDS)
using Number = int8_t;
// Those of centroids have one bit less, so that the sum of two products fits sixteen bits: 2 x 127 x 127.
constexpr uint32_t ADDED = 64;
template <bool is_row>
INLINE int32_t largest_number(int64_t) { return is_row ? 127 : 63; }
// A word has two sums, each of half of its numbers. Over a segment these numbers are at most so long, of
// rows and of centroids: 255 x 128 fits sixteen bits. (Sums on the way may not: they are whole again at
// the end.) Less what rounding adds to the length.
template <bool is_row>
constexpr float LONGEST_HALF = (is_row ? 255 : 128) - 0.51f * SQRT_OF_HALF;
#elif PER_WORD == 4
using Number = int8_t;
// Instructions multiply bytes with a sign by bytes without: those of centroids have 128 added.
constexpr uint32_t ADDED = 128;
// The size of a number at most.
template <bool is_row>
INLINE int32_t largest_number(int64_t) { return 127; }
#else
using Number = int16_t;
constexpr uint32_t ADDED = 0;
// Sums of products must fit 32 bits.
template <bool is_row>
INLINE int32_t largest_number(int64_t n_features) {
    const auto most = static_cast<int32_t>(std::sqrt(0x7FFFFFFFp0 / static_cast<double>(std::max<int64_t>(n_features, 2))));
    return std::min(most, 32767);
}
#endif

// What a number of a centroid that is 0 becomes, in all places of a word.
constexpr uint32_t ZEROS = ADDED * 0x01010101;

// Words of a row: each segment begins with one of its own.
inline int64_t row_words(int64_t n_words) {
#if defined(SEGMENT_WORDS)
    return n_words + parts_of(n_words, SEGMENT_WORDS);
#else
    return n_words;
#endif
}

// What is added to the lengths of a bound for rounding while they were computed; and the error of a
// score in float32, as a share of |row|^2 + |centroid|^2, with room to spare.
constexpr float LENGTH_SLACK = 1 + 1e-3f, SCORE_SLACK = 0x1p-20f;
// Squared lengths from which on nothing is screened here: those of bounds would be infinite.
constexpr float LONGEST_SQ = 1e36f;
// Lengths below which a row is all rest: its scale would be subnormal.
constexpr float SHORTEST = 1e-30f;
// Squares of numbers below 2^-63 may lose digits or vanish. A length lacks VANISHED times the square
// root of the number of features at most; a score, which has products of lengths, VANISHED_SCORE.
constexpr float VANISHED = 0x1p-62f, VANISHED_SCORE = 0x1p-122f;

// A point, less the centre, in bytes: about scale * bytes.
struct InBytes {
    float scale, sq_length;
    float length, rest;  // of scale * bytes, and of what is missing; rounded up
    int32_t sum;         // of the bytes
};

#if defined(SEGMENT_WORDS)
// The sums of the first two of every four lanes, and of the others, which the halves of words hold.
template <class V>
INLINE auto halves_of(const V& a) {
    return std::make_pair((a[0] + a[1]) + (a[4] + a[5]), (a[2] + a[3]) + (a[6] + a[7]));
}
#endif

// Fills every `stride`-th of `to` with a word of bytes, the last ones zeros. `shifted` has room for whole
// vectors.
template <int stride, bool is_row, class T>
INLINE InBytes into_bytes(const T* __restrict x, const T* __restrict centre, int64_t n_features,
                          float* __restrict shifted, int32_t* __restrict to) {
    using S = Simd<float>;
    typedef Number Bytes __attribute__((vector_size(BYTE_LANES * sizeof(Number))));
    typedef int32_t Words __attribute__((vector_size(BYTE_LANES * sizeof(Number))));
    constexpr float TO_WHOLE = 0x1.8p23f;
    for (int64_t i = 0; i < n_features; ++i) shifted[i] = static_cast<float>(x[i] - centre[i]);
    const int64_t n_padded = parts_of(n_features, BYTE_LANES) * BYTE_LANES;
    for (int64_t i = n_features; i < n_padded; ++i) shifted[i] = 0;
    Floats lowest{}, highest{}, squares{};
#if defined(SEGMENT_WORDS)
    constexpr int64_t SEGMENT = SEGMENT_WORDS * PER_WORD;
    float longest_half = 0;
    for (int64_t start = 0; start < n_padded; start += SEGMENT) {
        const Floats before = squares;
        squares = Floats{};
        for (int64_t i = start; i < std::min(start + SEGMENT, n_padded); i += BYTE_LANES) {
#else
    {
        for (int64_t i = 0; i < n_padded; i += BYTE_LANES) {
#endif
            const Floats value = S::load(shifted + i);
            lowest = value < lowest ? value : lowest;
            highest = -value < highest ? -value : highest;
            squares += value * value;
        }
#if defined(SEGMENT_WORDS)
        const auto [even, odd] = halves_of(squares);
        longest_half = std::max(longest_half, std::max(even, odd));
        squares += before;
#endif
    }
    const float largest = -least_of(highest < lowest ? highest : lowest);
    const bool is_short = !(largest >= SHORTEST);
    const float most = static_cast<float>(largest_number<is_row>(n_features));
    float scale = is_short ? 0 : largest / most, inverse = is_short ? 0 : most / largest;
#if defined(SEGMENT_WORDS)
    // Squares of small numbers vanish.
    longest_half = largest < 0x1p-40f ? largest * SQRT_OF_HALF : std::sqrt(longest_half);
    if (longest_half * inverse > LONGEST_HALF<is_row>) {
        scale = longest_half / LONGEST_HALF<is_row>;
        inverse = LONGEST_HALF<is_row> / longest_half;
    }
    // (Without a sign: of a row that is not finite these are anything.)
    typedef uint32_t Unsigned __attribute__((vector_size(VECTOR_BYTES)));
    Unsigned of_segment{};
    int32_t* first = to;
#endif
    Floats rests{}, lengths{};
    Integers sums{};
    for (int64_t i = 0; i < n_padded; i += BYTE_LANES) {
#if defined(SEGMENT_WORDS)
        if (is_row && i % SEGMENT == 0) {
            first = to;
            to += stride;
            of_segment = Unsigned{};
        }
#endif
        const Floats value = S::load(shifted + i), rounded = value * inverse + TO_WHOLE;
        const Integers whole = (Integers)rounded - int32_t{0x4B400000};  // Less the bits of TO_WHOLE.
        const Floats part = (rounded - TO_WHOLE) * scale, rest = value - part;
        const Bytes bytes = __builtin_convertvector(is_row ? whole : whole + static_cast<int32_t>(ADDED), Bytes);
        sums += whole;
        lengths += part * part;
        rests += rest * rest;
        const Words words = (Words)bytes;
        for (int word = 0; word < BYTE_LANES / PER_WORD && i + PER_WORD * word < n_features; ++word, to += stride) {
            *to = words[word];
        }
#if defined(SEGMENT_WORDS)
        of_segment += (Unsigned)whole;
        if (is_row && (i % SEGMENT == SEGMENT - BYTE_LANES || i + BYTE_LANES == n_padded)) {
            // Where the sums of products begin: less ADDED for each byte.
            const auto [even, odd] = halves_of(of_segment * -ADDED);
            *first = static_cast<int32_t>(odd << 16 | (even & 0xFFFF));
        }
#endif
    }
    uint32_t sum = 0;  // Of a row that is not finite the bytes are anything.
    for (int lane = 0; lane < BYTE_LANES; ++lane) sum += static_cast<uint32_t>(sums[lane]);
    const float sq_length = sum_of_lanes(squares);
    // Rounding while a rest was computed is a share of the point's own length.
    const float rounding = 0x1p-22f * std::sqrt(sq_length);
    const float vanished = VANISHED * std::sqrt(static_cast<float>(n_features));
    return {scale, sq_length, std::sqrt(sum_of_lanes(lengths)) * LENGTH_SLACK + vanished,
            std::sqrt(sum_of_lanes(rests)) * LENGTH_SLACK + rounding + vanished,
            static_cast<int32_t>(sum)};
}

// The packed centroids of a `ByteJob`, in its memory.
template <class T>
struct ByteCentroids {
    uint8_t* bytes;  // panel after panel, word after word of features, lane after lane: plus ADDED
    // One for each lane: |c|^2 (NaN where there is no centroid), twice the scale, lengths.
    float *sq_lengths, *scales, *lengths, *rests, *slacks;
    float *panel_length, *panel_rest, *panel_slack;  // the most in each panel
    T* centre;
    int64_t n_words;

    ByteCentroids(uint8_t* room, int64_t k, int64_t n_features) {
        n_words = parts_of(n_features, PER_WORD);
        const int64_t n_panels = parts_of(k, BYTE_PANEL), n_lanes = n_panels * BYTE_PANEL;
        centre = reinterpret_cast<T*>(room);
        float* const floats = reinterpret_cast<float*>(centre + n_features);
        sq_lengths = floats;
        scales = sq_lengths + n_lanes;
        lengths = scales + n_lanes;
        rests = lengths + n_lanes;
        slacks = rests + n_lanes;
        panel_length = slacks + n_lanes;
        panel_rest = panel_length + n_panels;
        panel_slack = panel_rest + n_panels;
        bytes = reinterpret_cast<uint8_t*>(panel_slack + n_panels);
    }
    ByteCentroids(const AssignJob<T>& job) : ByteCentroids(job.in_bytes, job.k, job.n_features) {}

    static int64_t n_bytes(int64_t k, int64_t n_features) {
        const int64_t n_panels = parts_of(k, BYTE_PANEL), n_lanes = n_panels * BYTE_PANEL;
        return n_features * sizeof(T) + (5 * n_lanes + 3 * n_panels) * sizeof(float) +
               n_lanes * 4 * parts_of(n_features, PER_WORD);
    }
};

// A point in the middle of the centroids, that none far away can move by much: the mean of those
// among a few that are not farther from their mean than most.
template <class T>
void find_centre(const AssignJob<T>& job) {
    constexpr int64_t MOST = 128;
    const int64_t stride = parts_of(job.k, MOST), n = parts_of(job.k, stride), d = job.n_features;
    T* const centre = ByteCentroids<T>(job).centre;
    std::vector<double> sums(d), distances(n);
    double limit = std::numeric_limits<double>::infinity();
    for (int round = 0; round < 2; ++round) {
        std::fill(sums.begin(), sums.end(), 0.0);
        int64_t n_added = 0;
        for (int64_t i = 0; i < n; ++i) {
            const T* const c = job.centroids + i * stride * d;
            // (A length that is not finite is of a centroid that is not, or is beyond use.)
            if (distances[i] > limit || !std::isfinite(sq_length(c, d))) continue;
            for (int64_t j = 0; j < d; ++j) sums[j] += c[j];
            ++n_added;
        }
        for (int64_t j = 0; j < d; ++j) centre[j] = n_added == 0 ? T(0) : static_cast<T>(sums[j] / n_added);
        for (int64_t i = 0; i < n; ++i) {
            const double distance = sq_difference(job.centroids + i * stride * d, centre, d);
            distances[i] = std::isnan(distance) ? std::numeric_limits<double>::infinity() : distance;
        }
        std::vector<double> sorted = distances;
        std::nth_element(sorted.begin(), sorted.begin() + n / 2, sorted.end());
        limit = sorted[n / 2];
    }
}

// Packs the centroids of one panel: `of_lane` says where that of a lane is, null where there is none.
// Returns false if one is too long.
template <class T, class OfLane>
bool pack_lanes(const ByteCentroids<T>& all, int64_t n_features, int64_t panel, const OfLane& of_lane) {
    const int64_t room = parts_of(n_features, 16) * 16;
    std::vector<float> shifted(room);
    int32_t* const packed = reinterpret_cast<int32_t*>(all.bytes) + panel * BYTE_PANEL * all.n_words;
    float length = 0, rest = 0, slack = 0;
    bool fits = true;
    for (int lane = 0; lane < BYTE_PANEL; ++lane) {
        const int64_t index = panel * BYTE_PANEL + lane;
        const T* const from = of_lane(lane);
        InBytes point{0, std::numeric_limits<float>::quiet_NaN(), 0, 0, 0};
        if (from != nullptr) {
            point = into_bytes<BYTE_PANEL, false>(from, all.centre, n_features, shifted.data(), packed + lane);
            // In float64: a score is as exact as this.
            point.sq_length = static_cast<float>(sq_length(shifted.data(), n_features));
            fits &= !(point.sq_length > LONGEST_SQ);
        }
        // No score is less than that of a NaN, which is what a centroid that is not finite has.
        const bool is_centroid = point.sq_length <= LONGEST_SQ;
        all.sq_lengths[index] = point.sq_length;
        all.scales[index] = 2 * point.scale;
        all.lengths[index] = is_centroid ? 2 * point.length : 0;
        all.rests[index] = is_centroid ? 2 * point.rest : 0;
        all.slacks[index] = is_centroid ? SCORE_SLACK * point.sq_length : 0;
        length = std::max(length, all.lengths[index]);
        rest = std::max(rest, all.rests[index]);
        slack = std::max(slack, all.slacks[index]);
        for (int64_t word = 0; from == nullptr && word < all.n_words; ++word) {
            packed[word * BYTE_PANEL + lane] = static_cast<int32_t>(ZEROS);
        }
    }
    all.panel_length[panel] = length;
    all.panel_rest[panel] = rest;
    all.panel_slack[panel] = slack;
    return fits;
}

// The same for centroids in their order.
template <class T>
bool pack_bytes(const AssignJob<T>& job, int64_t panel) {
    return pack_lanes(ByteCentroids<T>(job), job.n_features, panel, [&](int lane) -> const T* {
        const int64_t index = panel * BYTE_PANEL + lane;
        return index < job.k ? job.centroids + index * job.n_features : nullptr;
    });
}

// Centroids that may be the nearest of a row.
struct Candidates {
    static constexpr int MOST = 128;
    struct One {
        int32_t index;
        float low;  // the least that its score can be
    };
    int n = 0, room;
    float lost;  // the least that the score of one can be for which there was no room
    float kept;  // the limit when room was last made
    One all[MOST];

    INLINE void keep(float limit) {
        int n_kept = 0;
        for (int i = 0; i < n; ++i) {
            all[n_kept] = all[i];
            n_kept += all[i].low <= limit;
        }
        n = n_kept;
    }
    void add(int64_t index, float low, float limit) {
        if (n == room && limit < kept) {
            keep(limit);
            kept = limit;
        }
        if (n == room) {
            lost = low < lost ? low : lost;
            return;
        }
        all[n++] = {static_cast<int32_t>(index), low};
    }
};

// Panels whose scores are kept, to be looked through together if one is low enough.
constexpr int64_t STRETCH_PANELS = 16;
constexpr int64_t STRETCH = STRETCH_PANELS * BYTE_PANEL;
// Scores of a row, and two lines: rows that lie a power of two apart would share a few places of a cache.
constexpr int64_t STRIDE = STRETCH + 32;

// Rows of a tile: what is known of them and of their nearest centroids so far.
struct ByteTile {
    float limits[TILE_ROWS];   // no centroid is the nearest whose score is certainly above
    float lengths[TILE_ROWS], rests[TILE_ROWS], slacks[TILE_ROWS], scales[TILE_ROWS];
    int32_t starts[TILE_ROWS];  // of sums of products: less ADDED for each byte of a row
    // The two least scores, and how far off any is at most; only where `AssignJob::lows` are wanted.
    float firsts[TILE_ROWS], seconds[TILE_ROWS], errors[TILE_ROWS];
};

// Takes `n` scores into the two least so far.
INLINE void take_two(const float* scores, int64_t n, float& first, float& second) {
    constexpr float INF = std::numeric_limits<float>::infinity();
    Floats least = Floats{} + INF, next = least;
    for (int64_t i = 0; i < n; i += BYTE_LANES) {
        const Floats score = Simd<float>::load(scores + i);  // A NaN is passed over.
        const Floats loser = score < least ? least : score;
        next = loser < next ? loser : next;
        least = score < least ? score : least;
    }
    for (int lane = 0; lane < BYTE_LANES; ++lane) {
        second = std::min(second, std::max(first, least[lane]));
        first = std::min(first, least[lane]);
    }
    second = std::min(second, least_of(next));
}

// Looks through the `n` scores from centroid `first` on for those that may be the nearest of row `row`
// of a tile, where all within `error` of the limit may be. The limit falls with them, unless scores are
// those of heads (heads.h), which are no distances but less.
template <bool are_heads = false, class T>
INLINE void note(const ByteCentroids<T>& all, const float* scores, int64_t first, int64_t n, float error,
                 ByteTile& tile, int row, Candidates& candidates) {
    float limit = tile.limits[row];
    for (int64_t i = 0; i < n; i += BYTE_LANES) {
        const Floats of_lanes = Simd<float>::load(scores + i);
        uint32_t lanes = lanes_at_most(of_lanes, Floats{} + (limit + error));
        if (lanes == 0) continue;
        // Each by its own error, which is less than `error`, with room for what rounding does to it.
        const Floats errors = Simd<float>::load(all.lengths + first + i) * tile.rests[row] +
                              Simd<float>::load(all.rests + first + i) * tile.lengths[row] +
                              Simd<float>::load(all.slacks + first + i) + tile.slacks[row];
        lanes &= lanes_at_most(of_lanes - errors * LENGTH_SLACK, Floats{} + limit);
        for (; lanes != 0; lanes &= lanes - 1) {
            const int64_t each = i + __builtin_ctz(lanes), index = first + each;
            const float own = all.lengths[index] * tile.rests[row] + all.rests[index] * tile.lengths[row] +
                              all.slacks[index] + tile.slacks[row];
            const float low = scores[each] - own, high = scores[each] + own;
            if (!are_heads) limit = high < limit ? high : limit;
            if (low <= limit) candidates.add(index, low, limit);
        }
    }
    tile.limits[row] = limit;
}

// Fills `scores` with those of a tile of rows against one panel, and lowers `least`.
template <int n_vectors, class T>
INLINE void screen_panel(const ByteCentroids<T>& all, const int32_t* rows, int64_t panel,
                         const Upcoming<T>& upcoming, const ByteTile& tile, float* scores,
                         Floats (&least)[TILE_ROWS]) {
    Integers sums[TILE_ROWS][n_vectors];
    const uint8_t* packed = all.bytes + panel * BYTE_PANEL * 4 * all.n_words;
#if defined(SEGMENT_WORDS)
    std::fill_n(&sums[0][0], TILE_ROWS * n_vectors, Integers{});
    constexpr int64_t LINE = Upcoming<T>::LINE;
    for (int64_t word = 0; word < all.n_words;) {
        const int64_t stop = std::min<int64_t>(word + SEGMENT_WORDS, all.n_words);
        for (int64_t i = PER_WORD * word; i < PER_WORD * stop; i += LINE) upcoming.ask_for(i);
        Integers of_segment[TILE_ROWS][n_vectors];
#pragma GCC unroll 16
        for (int row = 0; row < TILE_ROWS; ++row) {
#pragma GCC unroll 4
            for (int v = 0; v < n_vectors; ++v) of_segment[row][v] = Integers{} + rows[row];
        }
        for (rows += TILE_ROWS; word < stop; ++word, packed += BYTE_PANEL * 4, rows += TILE_ROWS) {
#pragma GCC unroll 16
            for (int row = 0; row < TILE_ROWS; ++row) {
#pragma GCC unroll 4
                for (int v = 0; v < n_vectors; ++v) {
                    add_products(of_segment[row][v], packed + v * VECTOR_BYTES, rows[row]);
                }
            }
        }
#pragma GCC unroll 16
        for (int row = 0; row < TILE_ROWS; ++row) {
#pragma GCC unroll 4
            for (int v = 0; v < n_vectors; ++v) {
                sums[row][v] += (Integers)_mm256_madd_epi16((__m256i)of_segment[row][v], _mm256_set1_epi16(1));
            }
        }
    }
#else
#pragma GCC unroll 16
    for (int row = 0; row < TILE_ROWS; ++row) {
#pragma GCC unroll 4
        for (int v = 0; v < n_vectors; ++v) sums[row][v] = Integers{} + tile.starts[row];
    }
    constexpr int64_t LINE = Upcoming<T>::LINE / PER_WORD;
    for (int64_t word = 0; word < all.n_words;) {
        upcoming.ask_for(PER_WORD * word);
        const int64_t line = std::min(word + LINE, all.n_words);
        for (; word < line; ++word, packed += BYTE_PANEL * 4, rows += TILE_ROWS) {
#pragma GCC unroll 16
            for (int row = 0; row < TILE_ROWS; ++row) {
#pragma GCC unroll 4
                for (int v = 0; v < n_vectors; ++v) {
                    add_products(sums[row][v], packed + v * VECTOR_BYTES, rows[row]);
                }
            }
        }
    }
#endif
#pragma GCC unroll 4
    for (int v = 0; v < n_vectors; ++v) {
        const Floats lengths = Simd<float>::load(all.sq_lengths + panel * BYTE_PANEL + v * BYTE_LANES);
        const Floats scales = Simd<float>::load(all.scales + panel * BYTE_PANEL + v * BYTE_LANES);
#pragma GCC unroll 16
        for (int row = 0; row < TILE_ROWS; ++row) {
            const Floats score =
                lengths - __builtin_convertvector(sums[row][v], Floats) * tile.scales[row] * scales;
            Simd<float>::store(scores + row * STRIDE + v * BYTE_LANES, score);
            least[row] = score < least[row] ? score : least[row];  // A NaN is passed over.
        }
    }
}

// Scores a tile of rows against the panels from `first` to `last`, and takes up centroids that may be
// the nearest, to `candidates(row)` for each row.
template <class T, class OfRows>
INLINE void screen_stretch(const AssignJob<T>& job, const ByteCentroids<T>& all,
                           const int32_t* rows, int64_t tile, bool asks, int64_t first,
                           int64_t last, ByteTile& of_tile, float* scores, const OfRows& candidates) {
    Floats least[TILE_ROWS];
    for (Floats& one : least) one = Floats{} + std::numeric_limits<float>::infinity();
    float length = 0, rest = 0, slack = 0;
    for (int64_t panel = first; panel < last; ++panel) {
        Upcoming<T> upcoming;
        if (asks) upcoming = upcoming_rows(job, tile, panel - first, last - first);
        float* const of_panel = scores + (panel - first) * BYTE_PANEL;
        if (job.k - panel * BYTE_PANEL <= BYTE_LANES) {
            screen_panel<1>(all, rows, panel, upcoming, of_tile, of_panel, least);
        } else {
            screen_panel<PANEL_VECTORS>(all, rows, panel, upcoming, of_tile, of_panel, least);
        }
        length = std::max(length, all.panel_length[panel]);
        rest = std::max(rest, all.panel_rest[panel]);
        slack = std::max(slack, all.panel_slack[panel]);
    }
    const int64_t n = std::min(last * BYTE_PANEL, parts_of(job.k, BYTE_LANES) * BYTE_LANES) - first * BYTE_PANEL;
    for (int row = 0; row < TILE_ROWS; ++row) {
        const float error = length * of_tile.rests[row] + rest * of_tile.lengths[row] + slack + of_tile.slacks[row];
        if (job.lows) {
            take_two(scores + row * STRIDE, n, of_tile.firsts[row], of_tile.seconds[row]);
            of_tile.errors[row] = std::max(of_tile.errors[row], error);
        }
        const float lowest = least_of(least[row]);
        if (!(lowest - error <= of_tile.limits[row])) continue;
        of_tile.limits[row] = std::min(of_tile.limits[row], lowest + error);
        note(all, scores + row * STRIDE, first * BYTE_PANEL, n, error, of_tile, row, candidates(row));
    }
}

// Room of one thread for the rows of a block.
template <class T>
struct ByteRoom {
    std::vector<int32_t> words;
    std::vector<float> shifted;
    std::vector<Candidates> candidates;
    std::vector<ByteTile> tiles;
    std::vector<float> scores;
};

// Rows of a block whose bytes, and rests, stay in a cache.
inline int64_t byte_block_rows(int64_t n_features) {
    constexpr int64_t CACHED = 128 << 10;
    return std::clamp<int64_t>(CACHED / sizeof(Number) / std::max<int64_t>(n_features, 1) / TILE_ROWS, 1, TILES_PER_BLOCK) * TILE_ROWS;
}

// Turns points into the rows of a tile in bytes, and forgets the candidates that its places had. Of `k`
// centroids one is wanted. Fills the squared lengths of the points, less the centre, if asked for.
template <class T>
INLINE void fill_tile(const ByteCentroids<T>& all, const T* const (&points)[TILE_ROWS], int n_points,
                      int64_t n_features, int64_t k, float* shifted, int32_t* words, ByteTile& of_tile,
                      Candidates* candidates, float* sq_lengths) {
    constexpr float INF = std::numeric_limits<float>::infinity();
    // No more than a sixteenth of the centroids: comparing that many takes as long as screening saves.
    const int most = static_cast<int>(std::clamp<int64_t>(k / 16, 8, Candidates::MOST));
    const float vanished = VANISHED * std::sqrt(static_cast<float>(n_features));
    for (int row = 0; row < TILE_ROWS; ++row) {
        // Spare places of the last tile hold the last row again, with no centroid near.
        const bool is_spare = row >= n_points;
        const InBytes point = into_bytes<TILE_ROWS, true>(points[is_spare ? n_points - 1 : row], all.centre,
                                                       n_features, shifted, words + row);
        const bool is_usable = point.sq_length < LONGEST_SQ;  // Not of a NaN.
        candidates[row].n = 0;
        candidates[row].room = most;
        candidates[row].lost = is_usable ? INF : -INF;
        candidates[row].kept = INF;
        of_tile.limits[row] = is_usable && !is_spare ? INF : -INF;
        of_tile.lengths[row] = std::sqrt(point.sq_length) * LENGTH_SLACK + vanished;
        of_tile.rests[row] = point.rest;
        of_tile.slacks[row] = SCORE_SLACK * point.sq_length + VANISHED_SCORE;
        of_tile.scales[row] = point.scale;
        of_tile.firsts[row] = of_tile.seconds[row] = INF;
        of_tile.errors[row] = 0;
#if !defined(SEGMENT_WORDS)
        of_tile.starts[row] = static_cast<int32_t>(-ADDED * static_cast<uint32_t>(point.sum));
#endif
        if (sq_lengths != nullptr) sq_lengths[row] = point.sq_length;
    }
}

// The same for the rows of a job from `tile` on, `stop` at most.
template <class T>
INLINE void begin_tile(const AssignJob<T>& job, const ByteCentroids<T>& all, int64_t tile, int64_t stop,
                       float* shifted, int32_t* words, ByteTile& of_tile, Candidates* candidates,
                       float* sq_lengths = nullptr) {
    const T* located[TILE_ROWS];
    locate_tile(job, tile, stop, located);
    fill_tile(all, located, static_cast<int>(std::min<int64_t>(stop - tile, TILE_ROWS)), job.n_features, job.k,
              shifted, words, of_tile, candidates, sq_lengths);
}

// The squared distance of two points in float32.
template <class T>
INLINE float about_sq_difference(const T* __restrict a, const T* __restrict b, int64_t n_features) {
    constexpr int SUMS = 4;
    typedef T Wide __attribute__((vector_size(BYTE_LANES * sizeof(T))));
    Floats sums[SUMS] = {};
    int64_t i = 0;
    const auto add = [&](int part, int64_t from) __attribute__((always_inline)) {
        Wide x, c;
        std::memcpy(&x, a + from, sizeof x);
        std::memcpy(&c, b + from, sizeof c);
        const Floats difference = __builtin_convertvector(x - c, Floats);
        sums[part] += difference * difference;
    };
    for (; i + SUMS * BYTE_LANES <= n_features; i += SUMS * BYTE_LANES) {
#pragma GCC unroll 4
        for (int part = 0; part < SUMS; ++part) add(part, i + part * BYTE_LANES);
    }
    for (; i + BYTE_LANES <= n_features; i += BYTE_LANES) add(0, i);
    float rest = 0;
    for (; i < n_features; ++i) {
        const float difference = static_cast<float>(a[i] - b[i]);
        rest += difference * difference;
    }
    return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

// Candidates from which on those that are farther by more than rounding are left out first.
constexpr int MANY_CANDIDATES = 3;

// Leaves out the candidates of a row that are farther than another by more than float32 may err.
template <class T, class IndexOf>
INLINE void leave_nearest(const AssignJob<T>& job, const T* x, Candidates& candidates, const IndexOf& index_of) {
    // A sum has all its terms of one sign: it errs by a share of itself, and by squares that vanish.
    const float d = static_cast<float>(job.n_features);
    const float share = (d / BYTE_LANES + 16) * 0x1p-23f, vanished = d * 0x1p-120f;
    float least = std::numeric_limits<float>::infinity();
    for (int i = 0; i < candidates.n; ++i) {
        Candidates::One& one = candidates.all[i];
        if (i + 1 < candidates.n) {
            const T* const next = job.centroids + index_of(candidates.all[i + 1].index) * job.n_features;
            for (int64_t j = 0; j < std::min<int64_t>(job.n_features, 1024); j += Upcoming<T>::LINE) {
                __builtin_prefetch(next + j);
            }
        }
        const float sq_distance =
            about_sq_difference(x, job.centroids + index_of(one.index) * job.n_features, job.n_features);
        one.low = sq_distance * (1 - share) - vanished;
        least = std::min(least, sq_distance * (1 + share) + vanished);
    }
    candidates.keep(least);
}

// Fills label and distance of a row by its candidates, whose centroids `index_of` names. Returns whether
// it is in doubt still, because too many centroids are near, or none.
template <class T, class IndexOf>
INLINE bool settle_row(const AssignJob<T>& job, int64_t row, Candidates& candidates, float limit,
                       const IndexOf& index_of) {
    const bool is_crowded = candidates.lost <= limit || candidates.n == 0;
    double least = std::numeric_limits<double>::infinity();
    int64_t label = 0;
    const T* const x = job.row(row);
    if (!is_crowded && candidates.n >= MANY_CANDIDATES) leave_nearest(job, x, candidates, index_of);
    for (int i = 0; i < candidates.n && !is_crowded; ++i) {
        const int64_t index = index_of(candidates.all[i].index);
        const double sq_distance = sq_difference(x, job.centroids + index * job.n_features, job.n_features);
        if (sq_distance < least || (sq_distance == least && index < label)) {
            least = sq_distance;
            label = index;
        }
    }
    job.labels[row] = label;
    job.sq_distances[row] = static_cast<T>(least);
    if (job.exact) job.exact[row] = least;
    job.uncertain[row] = is_crowded;
    return is_crowded;
}

// Fills labels and distances of rows `start` to `stop` by their candidates, and which of them are in
// doubt still. Returns how many these are; `n_uncertain` grows by the others that were compared with
// several centroids, and `n_compared` by these centroids.
template <class T, class IndexOf>
INLINE int64_t settle_rows(const AssignJob<T>& job, int64_t start, int64_t stop, const ByteTile* tiles,
                           Candidates* all, int64_t& n_uncertain, int64_t& n_compared, const IndexOf& index_of) {
    int64_t n_crowded = 0;
    for (int64_t row = start; row < stop; ++row) {
        Candidates& candidates = all[row - start];
        const float limit = tiles[(row - start) / TILE_ROWS].limits[(row - start) % TILE_ROWS];
        candidates.keep(limit);
        if (row + 1 < stop && all[row + 1 - start].n > 0) {
            // Where the next row's centroid lies, no processor guesses.
            const T* const next = job.centroids + index_of(all[row + 1 - start].all[0].index) * job.n_features;
            for (int64_t i = 0; i < std::min<int64_t>(job.n_features, 1024); i += Upcoming<T>::LINE) {
                __builtin_prefetch(next + i);
            }
        }
        const int n_near = candidates.n;
        const bool is_crowded = settle_row(job, row, candidates, limit, index_of);
        n_crowded += is_crowded;
        n_uncertain += n_near > 1 && !is_crowded;
        n_compared += n_near;
        if (job.lows && !is_crowded) {
            // One candidate alone has the least score, and its distance is known: others are as much
            // farther as their scores are higher, but for two errors. Of several, none is nearer than
            // the nearest.
            const ByteTile& of_tile = tiles[(row - start) / TILE_ROWS];
            const int place = static_cast<int>((row - start) % TILE_ROWS);
            double farther = 0;
            if (n_near == 1) {
                farther = static_cast<double>(of_tile.seconds[place]) - of_tile.firsts[place] -
                          2 * static_cast<double>(of_tile.errors[place]);
            }
            job.lows[row] = low_of(job.exact[row] * (1 - 0x1p-20) + std::max(farther, 0.0));
        }
    }
    return n_crowded;
}

// Fills labels and distances of rows `start` to `stop`, and which of them are in doubt still. Returns
// how many these are; `n_uncertain` grows by the others that were compared with several centroids, and
// `n_compared` by these centroids.
template <class T>
int64_t assign_bytes(const AssignJob<T>& job, int64_t start, int64_t stop, int64_t& n_uncertain,
                     int64_t& n_compared) {
    static thread_local ByteRoom<T> room;
    const ByteCentroids<T> all(job);
    const int64_t n_tiles = parts_of(stop - start, TILE_ROWS);
    room.words.resize(n_tiles * TILE_ROWS * row_words(all.n_words));
    room.shifted.resize(parts_of(job.n_features, 16) * 16);
    room.candidates.resize(n_tiles * TILE_ROWS);
    room.tiles.resize(n_tiles);
    room.scores.resize(TILE_ROWS * STRIDE);
    const int64_t n_panels = parts_of(job.k, BYTE_PANEL), panel_bytes = BYTE_PANEL * 4 * all.n_words;
    const int64_t group = std::max<int64_t>(GROUP_BYTES / panel_bytes, 1);
    for (int64_t first = 0; first < n_panels; first += group) {
        for (int64_t tile = start; tile < stop; tile += TILE_ROWS) {
            ByteTile& of_tile = room.tiles[(tile - start) / TILE_ROWS];
            Candidates* const candidates = room.candidates.data() + (tile - start);
            int32_t* const words = room.words.data() + (tile - start) * row_words(all.n_words);
            if (first == 0) begin_tile(job, all, tile, stop, room.shifted.data(), words, of_tile, candidates);
            const int64_t last = std::min(first + group, n_panels);
            for (int64_t panel = first; panel < last; panel += STRETCH_PANELS) {
                screen_stretch(job, all, words, tile, panel == 0, panel, std::min(panel + STRETCH_PANELS, last),
                               of_tile, room.scores.data(),
                               [candidates](int row) -> Candidates& { return candidates[row]; });
            }
        }
    }
    return settle_rows(job, start, stop, room.tiles.data(), room.candidates.data(), n_uncertain, n_compared,
                       [](int64_t index) { return index; });
}
