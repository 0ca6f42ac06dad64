// Attention of a few query rows on many keys, 16-bit inputs, every feature: all query heads of a key/value head are rows of one tile, so
// K and V are read once; keys are cut into splits, whose results are joined by merge.cuh.
// Tile     16 rows (position * group + head of the group) x 16 keys a step.
// Who      one block for a split. Each FA_SPLIT of its FA_WARPS warps are a team: teams take tiles of keys in turns, with a softmax and a
//          ring of their own, and meet at the end only; the warps of a team share the columns of V.
// Memory   a ring of FA_STAGES tiles of K and V a team, filled by cp.async; Q, S and P in registers (Q of head dims above 128: shared).
// Speed    bound by reading K and V: what counts is bytes under way, (FA_STAGES - 1) tiles a team. docs/performance.md
//
//   decode    grid: splits, kv heads * divide_up(longest rows * group, 16), batch
//             words/splits.cuh says which keys a split has; results to part_out, part_lse where there are some, else to out, lse
#include "words/barrier.cuh"
#include "words/panel.cuh"
#include "words/score.cuh"
#include "words/splits.cuh"

namespace fa::cuda {
namespace {
constexpr int ROWS = 16, KEYS = 16, DIM = FA_DIM, VALUE_DIM = FA_VALUE_DIM, STAGES = FA_STAGES;
constexpr int THREADS = FA_WARPS * 32, TEAM = FA_SPLIT * 32, TEAMS = FA_WARPS / FA_SPLIT, COLUMNS = VALUE_DIM / FA_SPLIT;
constexpr int STEPS = DIM / 16, OT = COLUMNS / 8;
constexpr bool KEEPS_Q = DIM <= 128;
static_assert(FA_WARPS % FA_SPLIT == 0 && COLUMNS % 16 == 0);
constexpr unsigned ALL_LANES = 0xffffffffu;
using QPanel = Panel<ROWS, DIM>;
using KPanel = Panel<KEYS, DIM>;
using VPanel = Panel<KEYS, VALUE_DIM>;
constexpr int STAGE_BYTES = KPanel::BYTES + VPanel::BYTES;

FA_FN int thread_of_team() { return static_cast<int>(threadIdx.x) % TEAM; }
FA_FN int team_of() { return static_cast<int>(threadIdx.x) / TEAM; }
FA_FN float quad_max(float x) {
  x = max(x, __shfl_xor_sync(ALL_LANES, x, 1));
  return max(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
FA_FN float quad_sum(float x) {
  x += __shfl_xor_sync(ALL_LANES, x, 1);
  return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Eight elements of a row, those beyond its end 0, as are all of a row that is absent.
FA_FN void copy_chunk(unsigned to, const Element* row, int chunk, int dim, int width, bool present) {
  const int valid = present ? min(max(dim - chunk * 8, 0), 8) * 2 : 0;
  const Element* const from = valid > 0 ? row + chunk * 8 : row;
  if (width == 16)
    copy_16(to, from, valid);
  else
    copy_narrow(to, from, valid, width);
}

// K or V of one head: where a tile's rows lie. Behind pages, each lane looks up one key of the tile, a step before it is needed.
struct KeyRows {
  const Element* array;
  Strides strides;
  int dim, width;
  Int64 at;  // offset of the tile's first key, or of this lane's key

  FA_MEMBER KeyRows(const void* first, Strides s, int elements)
      : array(static_cast<const Element*>(first)), strides(s), dim(elements), width(copy_width(first, s)), at(0) {}
  FA_MEMBER void look_up(const Numbers& p, const Sequence& s, int first, int end, int kv_head) {
    const int key = PAGED_KEYS ? first + lane_of() % KEYS : first;
    if (key < end) at = key_offset(p, strides, s, key, kv_head);
  }
  FA_MEMBER const Element* row(int i) const { return array + (PAGED_KEYS ? __shfl_sync(ALL_LANES, at, i) : at + i * strides.row); }
};
// `count` keys of a tile, zeros below. A thread keeps its column: neighbours copy one row's chunks (those of a panel where they do not
// divide the team).
template <int D>
FA_FN void fetch(Panel<KEYS, D> panel, const KeyRows& rows, int count) {
  constexpr int CHUNKS = D / 8, ACROSS = TEAM % CHUNKS == 0 ? CHUNKS : Panel<KEYS, D>::CHUNKS, DOWN = TEAM / ACROSS;
  const int top = thread_of_team() / ACROSS, left = thread_of_team() % ACROSS;
  if (rows.width == 16 && rows.dim == D && count >= KEYS) {
    const Element* from = rows.row(top % KEYS) + left * 8;
#pragma unroll
    for (int row = 0; row < KEYS; row += DOWN) {
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; chunk += ACROSS)
        if (DOWN <= KEYS || top < KEYS) copy_16(panel.address(row + top, chunk + left), from + chunk * 8);
      if (row + DOWN < KEYS) from = PAGED_KEYS ? rows.row(row + DOWN + top) + left * 8 : from + DOWN * rows.strides.row;
    }
  } else {
#pragma unroll 1
    for (int row = top; row < divide_up(KEYS, DOWN) * DOWN; row += DOWN) {
      const Element* const first = rows.row(row % KEYS);
      if (row >= KEYS) continue;
#pragma unroll 1
      for (int chunk = left; chunk < CHUNKS; chunk += ACROSS) {
        copy_chunk(panel.address(row, chunk), first, chunk, rows.dim, rows.width, row < count);
      }
    }
  }
}

// Which query a row of the tile is.
struct Query {
  int position, head;
};
FA_FN Query query_of(const Numbers& p, int row, int kv_head) { return Query{row / p.group, kv_head * p.group + row % p.group}; }

// The state of a warp's rows: register [o][2 h + e] belongs to row g + 8 h.
struct State {
  float out[OT][4];
  Softmax<float> softmax[2];
};

// S = Q K^T: register [n][2 h + e] is row g + 8 h, key n * 8 + 2 t + e
FA_FN void products(float (&s)[2][4], const unsigned (&q)[KEEPS_Q ? STEPS : 1][4], const Tiles<QPanel>& q_tiles, KPanel panel) {
  const Tiles<KPanel> k = Tiles<KPanel>::crossed(panel, 0);
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) s[n][i] = 0;
#pragma unroll(KEEPS_Q ? STEPS : 4)
  for (int step = 0; step < STEPS; step++) {
    unsigned b[4];
    load_matrices(b, k.at(0, step * 2));
    if constexpr (KEEPS_Q) {
      multiply_add(s[0], q[step], b[0], b[1]);
      multiply_add(s[1], q[step], b[2], b[3]);
    } else {
      unsigned left[4];
      load_matrices(left, q_tiles.at(0, step * 2));
      multiply_add(s[0], left, b[0], b[1]);
      multiply_add(s[1], left, b[2], b[3]);
    }
  }
}

// score, hide, weigh: products become probabilities relative to the running maximum. key: of register [0][0]
FA_FN void weigh(float (&s)[2][4], State& state, const Elements (&elements)[2], const Query (&queries)[2], const Interval<int> (&seen)[2],
                 int key) {
  const float unit = elements[0].unit();
  float top[2];
  bool moved = false;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    top[h] = no_maximum();
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int j = key + n * 8 + e;
        float& x = s[n][2 * h + e];
        x = elements[h].score(x, queries[h].position, j);
        x = j >= seen[h].first && j < seen[h].end ? x : hidden();
        top[h] = max(top[h], x * unit);
      }
    moved = moved || top[h] > state.softmax[h].max;
  }
  if (__any_sync(ALL_LANES, moved)) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const Softmax<float> before = state.softmax[h];
      state.softmax[h] = advance(before, quad_max(top[h]));
      const float factor = rescale(before.max, state.softmax[h].max);
#pragma unroll
      for (int o = 0; o < OT; o++) state.out[o][2 * h] *= factor, state.out[o][2 * h + 1] *= factor;
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float& x = s[n][2 * h + e];
        x = probability(x, unit, state.softmax[h].max);
        state.softmax[h].sum += x;
        if constexpr (DROPS) x = elements[h].keeps(queries[h].position, key + n * 8 + e) ? x : 0.0f;
      }
}

// Of two keys in a register of V: those that some row gives weight. What others hold must not matter, not even a NaN.
FA_FN unsigned counted(float left_g, float right_g, float left_8, float right_8) {
  const unsigned column = 0x11111111u << (lane_of() % 4);  // the lanes with the same two keys
  const bool left = (__ballot_sync(ALL_LANES, left_g != 0 || left_8 != 0) & column) != 0;
  const bool right = (__ballot_sync(ALL_LANES, right_g != 0 || right_8 != 0) & column) != 0;
  return (left ? 0xffffu : 0u) | (right ? 0xffff0000u : 0u);
}

// O += P V
FA_FN void accumulate(State& state, const float (&s)[2][4], VPanel panel, int first_chunk) {
  const Tiles<VPanel> v = Tiles<VPanel>::straight(panel, 0);
  const unsigned a[4] = {pack(s[0][0], s[0][1]), pack(s[0][2], s[0][3]), pack(s[1][0], s[1][1]), pack(s[1][2], s[1][3])};
  unsigned counts[2] = {~0u, ~0u};
  if constexpr ((F & BIAS) != 0) {  // which hides keys in the middle of those that are read
#pragma unroll
    for (int n = 0; n < 2; n++) counts[n] = counted(s[n][0], s[n][1], s[n][2], s[n][3]);
  }
#pragma unroll
  for (int o = 0; o < OT; o += 2) {
    unsigned b[4];
    load_transposed(b, v.at(0, first_chunk + o));
    multiply_add(state.out[o], a, b[0] & counts[0], b[1] & counts[1]);
    multiply_add(state.out[o + 1], a, b[2] & counts[0], b[3] & counts[1]);
  }
}

// What the teams found, in the memory of the ring.
struct Found {
  float maximum[TEAMS][ROWS], sum[TEAMS][ROWS], weight[TEAMS][ROWS];
  float out[TEAMS][ROWS][VALUE_DIM];
};
FA_FN void leave(Found& found, State& state) {
  const int team = team_of(), row = lane_of() / 4, column = warp_of() % FA_SPLIT * COLUMNS + lane_of() % 4 * 2;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float sum = quad_sum(state.softmax[h].sum);
    if (column == 0) found.maximum[team][row + 8 * h] = state.softmax[h].max, found.sum[team][row + 8 * h] = sum;
#pragma unroll
    for (int o = 0; o < OT; o++)
#pragma unroll
      for (int e = 0; e < 2; e++) found.out[team][row + 8 * h][column + o * 8 + e] = state.out[o][2 * h + e];
  }
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  extern __shared__ __align__(128) unsigned char shared[];

  // where
  const Sequence sequence = sequence_of(p, a, static_cast<int>(blockIdx.z));
  const Mask mask = mask_of(sequence);
  const int part = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y) % p.kv_heads;
  const int row0 = static_cast<int>(blockIdx.y) / p.kv_heads * ROWS, rows = min(mask.rows * p.group - row0, ROWS);
  const Splits splits = splits_of(p, mask);
  if (rows <= 0 || part >= splits.count) return;

  // range
  const Interval<int> range = splits.keys(part, any_visible(mask, row0 / p.group, (row0 + rows - 1) / p.group));
  const int first = range.first, end = range.end;
  const int tiles = end > first ? divide_up(end - first, KEYS) : 0;

  const unsigned base = shared_address(shared), ring = base + QPanel::BYTES + static_cast<unsigned>(team_of() * STAGES * STAGE_BYTES);
  const auto k_panel = [&](int stage) { return KPanel{ring + static_cast<unsigned>(stage * STAGE_BYTES)}; };
  const auto v_panel = [&](int stage) { return VPanel{ring + static_cast<unsigned>(stage * STAGE_BYTES + KPanel::BYTES)}; };
  KeyRows k(a.k, p.k, p.dim), v(a.v, p.v, p.value_dim);
  const auto look_up = [&](int tile) {
    k.look_up(p, sequence, first + tile * KEYS, end, kv_head);
    v.look_up(p, sequence, first + tile * KEYS, end, kv_head);
  };
  const auto fetch_tile = [&](int tile, int stage) {
    if (tile < tiles) {
      const int count = end - (first + tile * KEYS);
      fetch(k_panel(stage), k, count);
      fetch(v_panel(stage), v, count);
      look_up(tile + TEAMS);
    }
    commit();
  };

  const QPanel q_panel{base};
  const Element* const q_rows = static_cast<const Element*>(a.q);
  const int q_width = copy_width(a.q, p.q);
  for (int i = static_cast<int>(threadIdx.x); i < ROWS * (DIM / 8); i += THREADS) {
    const int row = i / (DIM / 8), chunk = i % (DIM / 8);
    const Query query = query_of(p, row0 + min(row, rows - 1), kv_head);
    copy_chunk(q_panel.address(row, chunk), q_rows + row_offset(p.q, sequence, query.position, query.head), chunk, p.dim, q_width,
               row < rows);
  }
  commit();
  int next = team_of();  // tile to fetch
  look_up(next);
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; stage++, next += TEAMS) fetch_tile(next, stage);
  wait<STAGES - 1>();
  __syncthreads();  // Q is there

  const Tiles<QPanel> q_tiles = Tiles<QPanel>::straight(q_panel, 0);
  unsigned q[KEEPS_Q ? STEPS : 1][4];
  if constexpr (KEEPS_Q) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) load_matrices(q[step], q_tiles.at(0, step * 2));
  }
  // rows beyond the last repeat it, and are not stored
  const int row_g = min(lane_of() / 4, rows - 1), row_8 = min(lane_of() / 4 + 8, rows - 1);
  const Query queries[2] = {query_of(p, row0 + row_g, kv_head), query_of(p, row0 + row_8, kv_head)};
  const Elements elements[2] = {Elements(p, a, sequence, queries[0].head), Elements(p, a, sequence, queries[1].head)};
  Interval<int> seen[2];
  State state;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const Interval<int> keys = visible_keys(mask, queries[h].position);
    seen[h] = Interval<int>{max(keys.first, first), min(keys.end, end)};
    state.softmax[h] = Softmax<float>{no_maximum(), 0};
  }
#pragma unroll
  for (int o = 0; o < OT; o++)
#pragma unroll
    for (int i = 0; i < 4; i++) state.out[o][i] = 0;

  int stage = 0;
#pragma unroll 1
  for (int tile = team_of(); tile < tiles; tile += TEAMS, next += TEAMS) {
    wait<STAGES - 2>();
    sync_some<TEAM>(team_of() + 1);  // this tile is there, and the team has left the one before, whose stage is free
    fetch_tile(next, stage == 0 ? STAGES - 1 : stage - 1);
    float s[2][4];
    products(s, q, q_tiles, k_panel(stage));
    weigh(s, state, elements, queries, seen, first + tile * KEYS + lane_of() % 4 * 2);
    accumulate(state, s, v_panel(stage), warp_of() % FA_SPLIT * (COLUMNS / 8));
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

  // finish: the teams' results, weighed; the sink is a key of the first split
  wait<0>();
  __syncthreads();
  Found& found = *reinterpret_cast<Found*>(shared);
  leave(found, state);
  __syncthreads();
  const bool split = a.part_out != nullptr;
  const Int64 part_row = part * a.total_rows * p.heads;
  if (const int row = static_cast<int>(threadIdx.x); row < rows) {
    const Query query = query_of(p, row0 + row, kv_head);
    Softmax<float> sum{no_maximum(), 0};
#pragma unroll
    for (int team = 0; team < TEAMS; team++) sum.max = max(sum.max, found.maximum[team][row]);
#pragma unroll
    for (int team = 0; team < TEAMS; team++) sum.sum += found.sum[team][row] * rescale(found.maximum[team][row], sum.max);
    if constexpr ((F & SINK) != 0) {
      if (part == 0) sum = add_sink(sum, sink_of(a, query.head));
    }
#pragma unroll
    for (int team = 0; team < TEAMS; team++)
      found.weight[team][row] = rescale(found.maximum[team][row], sum.max) * inverse_sum(sum) * elements[0].keep_scale;
    float* const lse = split ? static_cast<float*>(a.part_lse) + part_row : static_cast<float*>(a.lse);
    lse[lse_offset(p, sequence, query.position, query.head)] = log_sum_exp(sum);
  }
  __syncthreads();
  for (int n = static_cast<int>(threadIdx.x); n < rows * VALUE_DIM; n += THREADS) {
    const int row = n / VALUE_DIM, column = n % VALUE_DIM;
    if (column >= p.value_dim) continue;
    float x = 0;
#pragma unroll
    for (int team = 0; team < TEAMS; team++) x = fma(found.out[team][row][column], found.weight[team][row], x);
    const Query query = query_of(p, row0 + row, kv_head);
    const Int64 at = row_offset(p.out, sequence, query.position, query.head) + column;
    if (split)
      static_cast<float*>(a.part_out)[part_row * p.value_dim + at] = x;
    else
      static_cast<Out*>(a.out)[at] = from_real<Out>(x);
  }
}
}  // namespace fa::cuda
