#include "metal/plan.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <initializer_list>

#include "core/error.h"
#include "metal/tiles.h"

namespace fa::metal {
namespace {
using Roles = std::initializer_list<Role>;

template <class Tile, size_t N>
const Tile& first_fit(const Tile (&tiles)[N], int bytes, int dim) {
  return *std::find_if(tiles, tiles + N - 1, [&](const Tile& t) { return t.bytes == bytes && t.dim >= dim; });
}

struct Planner {
  const Problem& problem;
  Plan plan;

  Planner(const Problem& p, const Kernel& row) : problem(p), plan{p, &row, {}, {}} {}

  // A launch over `blocks` threadgroups of `simdgroups`. Arrays that the call has become arguments, those it writes behind those it reads.
  Launch& launch(const char* source, const char* kernel, int blocks_x, int blocks_y, int blocks_z, int simdgroups) {
    plan.launches.push_back(Launch{plan.row, kernel, problem.params, {}});
    Launch& l = plan.launches.back();
    l.source = source;
    l.grid = Grid{{blocks_x, blocks_y, blocks_z}, {SIMD * simdgroups, 1, 1}};
    if (packed()) l.params.capacity = static_cast<int>(problem.has(Role::pages) ? problem.params.capacity : problem.total_keys);
    l.constants = {{"FA_NEEDS", static_cast<int>(problem.needs & (VARLEN | CACHED | PAGED))},
                   {"FA_DTYPE", static_cast<int>(problem.dtype)},
                   {"FA_SIMDGROUPS", simdgroups}};
    return l;
  }
  void reads(Launch& l, Roles roles) const {
    for (Role r : roles)
      if (problem.has(r)) l.arguments.push_back(Argument{r, Source{r, -1}});
  }
  void reads_places(Launch& l) const {
    reads(l, {Role::cu_rows, Role::cu_keys, Role::used_rows, Role::used_keys, Role::lengths, Role::cache_rows, Role::leftpad, Role::pages});
  }
  void writes(Launch& l, Roles roles) const {
    for (Role r : roles)
      if (problem.wanted(r)) l.arguments.push_back(Argument{r, Source{r, -1}, true});
  }

  Strides contiguous(int64_t rows, int heads, int dim) const {
    return Strides{packed() ? 0 : rows * heads * dim, int64_t{heads} * dim, dim};
  }
  static void add(Launch& l, std::initializer_list<Constant> constants) { l.constants.insert(l.constants.end(), constants); }
  // Threadgroup memory; the kernel declares it.
  static void memory(Launch& l, int bytes) { add(l, {{"FA_MEMORY", std::max(divide_up(bytes, 16), 1)}}); }
  // Kernels that look at elements; constants that a text does not use would only make more variants of it.
  void elements(Launch& l) const {
    add(l, {{"FA_F", static_cast<int>(problem.features)}, {"FA_DIM", round_up(problem.params.dim, FRAGMENT)}});
  }
  void elements_and_values(Launch& l) const {
    elements(l);
    add(l, {{"FA_VALUE_DIM", round_up(problem.params.value_dim, FRAGMENT)}});
  }
  static void tiles(Launch& l, int held, int stream, bool in_registers, bool keys_stream) {
    add(l, {{"FA_HELD_TILES", held}, {"FA_STREAM_TILES", stream}, {"FA_IN_REGISTERS", in_registers}, {"FA_KEYS_STREAM", keys_stream}});
  }
  int bytes() const { return static_cast<int>(element_bytes(problem.dtype)); }
  bool has_words(std::initializer_list<Strides> arrays) const;

  bool packed() const { return (problem.needs & VARLEN) != 0; }
  // the sequences, and behind packed ones the slots that belong to none
  int sequences() const { return problem.params.batch + (packed() ? 1 : 0); }

  // threadgroups of `rows` rows for the longest sequence; one at least where slots may belong to none
  int row_blocks(int rows) const { return std::max(divide_up(problem.max_rows, rows), packed() ? 1 : 0); }

  int key_blocks(int keys) const { return std::max(divide_up(problem.max_keys, keys), packed() ? 1 : 0); }

  int temporary(DType dtype, int64_t count) {
    plan.temporaries.push_back(Temporary{dtype, count});
    return static_cast<int>(plan.temporaries.size()) - 1;
  }
  static void bind(Launch& l, Role as, int temporary, bool written) {
    l.arguments.push_back(Argument{as, Source{Role::COUNT, temporary}, written});
  }

  void mlx_sdpa();
  void forward();
  void forward_tensor();
  void decode();
  void forward_plain();
  void backward();
  void backward_plain();
  void append();
  void merge();

 private:
  void after_forward();
  void delta();
  // every backward launch reads delta: the caller's array where it wants one, else a temporary
  void reads_delta(Launch& l) const {
    if (problem.max_rows == 0 && !packed()) return;  // nobody has written it, and nobody will look
    if (problem.wanted(Role::delta))
      l.arguments.push_back(Argument{Role::delta, Source{Role::delta, -1}});
    else
      bind(l, Role::delta, delta_, false);
  }
  Launch& gradient(const char* source, const char* kernel, Grid grid);
  void dq(const BackwardTile& tile);
  void dkv(const BackwardTile& tile, int dk, int dv);
  void bias_gradient();
  void bias_gradient_plain();
  void sink_gradient();
  int delta_ = -1;
};

// Whether rows may be read in words of 16 bytes: see FA_VECTOR in words/rows.metal. Strides of axes with one element do not matter.
bool Planner::has_words(std::initializer_list<Strides> arrays) const {
  const ParamsT<double>& p = problem.params;
  const int step = 16 / bytes();
  const auto odd = [&](int64_t stride, int64_t size) { return size > 1 && stride % step != 0; };
  if (p.dim % FRAGMENT != 0 || p.value_dim % FRAGMENT != 0) return false;
  for (const Strides& s : arrays)
    if (odd(s.batch, (problem.needs & (CACHED | PAGED)) != 0 ? 2 : p.batch) || odd(s.row, std::max(problem.max_rows, problem.max_keys)) ||
        odd(s.head, p.heads))
      return false;
  return true;
}
// Not a kernel of ours: the runner calls MLX's function with these numbers.
void Planner::mlx_sdpa() {
  const ParamsT<double>& p = problem.params;
  plan.launches.push_back(Launch{plan.row, "mlx_sdpa", p, {}});
  Launch& l = plan.launches.back();
  l.constants = {{"causal", p.mask.right == 0}, {"scale_bits", std::bit_cast<int>(static_cast<float>(p.score.scale))}};
  reads(l, {Role::q, Role::k, Role::v});
  l.arguments.push_back(Argument{Role::out, Source{Role::out, -1}, true});
}
// What FORWARD_TILES says, and how the columns of Out are cut.
void Planner::forward() {
  const ParamsT<double>& p = problem.params;
  const int dim = round_up(p.dim, FRAGMENT);
  const int columns = round_up(p.value_dim, FRAGMENT), part = part_columns(columns);
  const ForwardTile& tile = first_fit(FORWARD_TILES, bytes(), std::max(dim, columns));
  const int held = tile.in_registers ? 0 : held_bytes(tile.held_tiles, dim, bytes()), groups = simdgroups(held, MOST_SIMDGROUPS);
  const int blocks = row_blocks(FRAGMENT * tile.held_tiles * groups);
  Launch& l = launch("forward.metal", "forward", blocks, p.heads * parts(columns), sequences(), groups);
  elements(l);
  tiles(l, tile.held_tiles, tile.stream_tiles, tile.in_registers, true);
  add(l, {{"FA_PART", part},
          {"FA_PARTS", parts(columns)},
          {"FA_VECTOR", has_words({p.q, p.k, p.v, p.out}) && part * parts(columns) == columns}});
  memory(l, held * groups);
  reads(l, {Role::q, Role::k, Role::v, Role::seed, Role::slopes, Role::bias, Role::sink});
  reads_places(l);
  writes(l, {Role::out, Role::lse});
  after_forward();
}
void Planner::forward_tensor() {
  const ParamsT<double>& p = problem.params;
  const int blocks = row_blocks(TENSOR_ROWS * MOST_SIMDGROUPS);
  Launch& l = launch("forward_tensor.metal", "forward_tensor", blocks, p.heads, sequences(), MOST_SIMDGROUPS);
  elements_and_values(l);
  add(l, {{"FA_VECTOR", has_words({p.q, p.k, p.v, p.out})}});
  reads(l, {Role::q, Role::k, Role::v, Role::seed, Role::slopes, Role::bias, Role::sink});
  reads_places(l);
  writes(l, {Role::out, Role::lse});
  after_forward();
}
// Long keys are cut into splits, whose results go to temporaries that a merge joins.
void Planner::decode() {
  const ParamsT<double>& p = problem.params;
  const int dim = round_up(p.dim, FRAGMENT), columns = round_up(p.value_dim, FRAGMENT), part = part_columns(columns);
  const int64_t rows = problem.max_rows * p.group;
  const DecodeTile& tile = first_fit(DECODE_TILES, bytes(), std::max(dim, columns));
  const int held_tiles = rows <= FRAGMENT ? 1 : tile.held_tiles;
  const int held = tile.in_registers ? 0 : held_bytes(held_tiles, dim, bytes());
  const int groups = simdgroups(std::max(held, joined_bytes(held_tiles, part) / 2), MOST_SIMDGROUPS);
  const int blocks = std::max(divide_up(rows, FRAGMENT * held_tiles), packed() ? 1 : 0), heads = p.kv_heads * blocks * parts(columns);
  const int split = decode_split(problem.max_keys, int64_t{p.batch} * heads, FRAGMENT * tile.stream_tiles * groups, problem.splits);
  const int count = std::max(1, divide_up(problem.max_keys, split));
  Launch& l = launch("decode.metal", "decode", count, heads, sequences(), groups);
  elements(l);
  tiles(l, held_tiles, tile.stream_tiles, tile.in_registers, true);
  add(l, {{"FA_PART", part},
          {"FA_PARTS", parts(columns)},
          {"FA_VECTOR", has_words({p.q, p.k, p.v, p.out}) && part * parts(columns) == columns}});
  memory(l, std::max(held * groups, joined_bytes(held_tiles, part) * (groups / 2)));
  reads(l, {Role::q, Role::k, Role::v, Role::slopes, Role::sink});
  reads_places(l);
  l.params.split_keys = split;
  l.params.splits = count;
  if (count == 1) {
    writes(l, {Role::out, Role::lse});
  } else {
    const int64_t all = problem.total_rows * p.heads;
    const int part_out = temporary(DType::f32, count * all * p.value_dim), part_lse = temporary(DType::f32, count * all);
    l.params.out = contiguous(problem.max_rows, p.heads, p.value_dim);
    bind(l, Role::part_out, part_out, true);
    bind(l, Role::part_lse, part_lse, true);
    Launch& m = launch("small.metal", "merge", row_blocks(PLAIN_SIMDGROUPS), p.heads, sequences(), PLAIN_SIMDGROUPS);
    m.params.q = contiguous(problem.max_rows, p.heads, p.value_dim);
    m.params.split_keys = split;
    m.params.splits = count;
    bind(m, Role::part_out, part_out, false);
    bind(m, Role::part_lse, part_lse, false);
    reads_places(m);
    writes(m, {Role::out, Role::lse});
  }
  after_forward();
}
void Planner::forward_plain() {
  const int blocks = row_blocks(PLAIN_SIMDGROUPS);
  Launch& l = launch("plain.metal", "forward_plain", blocks, problem.params.heads, sequences(), PLAIN_SIMDGROUPS);
  elements_and_values(l);
  reads(l, {Role::q, Role::k, Role::v, Role::seed, Role::slopes, Role::bias, Role::sink});
  reads_places(l);
  writes(l, {Role::out, Role::lse});
  after_forward();
}
void Planner::after_forward() {
  if (!problem.wanted(Role::probabilities)) return;
  const ParamsT<double>& p = problem.params;
  Launch& l = launch("plain.metal", "probabilities", divide_up(problem.max_rows, PLAIN_SIMDGROUPS), p.heads, p.batch, PLAIN_SIMDGROUPS);
  elements_and_values(l);
  reads(l, {Role::q, Role::k, Role::seed, Role::slopes, Role::bias, Role::sink});
  reads_places(l);
  writes(l, {Role::probabilities});
}

void Planner::delta() {
  Launch& l = launch("small.metal", "delta", row_blocks(PLAIN_SIMDGROUPS), problem.params.heads, sequences(), PLAIN_SIMDGROUPS);
  reads(l, {Role::dout, Role::out, Role::lse, Role::dlse});
  reads_places(l);
  if (problem.wanted(Role::delta)) return writes(l, {Role::delta});
  delta_ = temporary(DType::f32, problem.total_rows * problem.params.heads);
  bind(l, Role::delta, delta_, true);
}
// Reads all that a gradient of the scores needs.
Launch& Planner::gradient(const char* source, const char* kernel, Grid grid) {
  Launch& l = launch(source, kernel, grid.blocks[0], grid.blocks[1], grid.blocks[2], grid.threads[0] / SIMD);
  elements_and_values(l);
  reads(l, {Role::q, Role::k, Role::v, Role::dout, Role::lse});
  reads_delta(l);
  reads(l, {Role::seed, Role::slopes, Role::bias});
  reads_places(l);
  return l;
}
void Planner::backward_plain() {
  const ParamsT<double>& p = problem.params;
  const int threads = SIMD * PLAIN_SIMDGROUPS;
  delta();
  writes(gradient("plain.metal", "row_gradient_plain", {{row_blocks(PLAIN_SIMDGROUPS), p.heads, sequences()}, {threads}}), {Role::dq});
  writes(gradient("plain.metal", "key_gradient_plain", {{key_blocks(PLAIN_SIMDGROUPS), p.kv_heads, sequences()}, {threads}}),
         {Role::dk, Role::dv});
  bias_gradient_plain();
  sink_gradient();
}
void Planner::backward() {
  const ParamsT<double>& p = problem.params;
  const int dim = round_up(p.dim, FRAGMENT), value_dim = round_up(p.value_dim, FRAGMENT);
  delta();
  dq(first_fit(DQ_TILES, bytes(), std::max(dim, value_dim)));
  const BackwardTile& tile = first_fit(DKV_TILES, bytes(), std::max(dim, value_dim));
  if (tile.together) {
    dkv(tile, dim, value_dim);
  } else {
    dkv(tile, dim, 0);
    dkv(tile, 0, value_dim);
  }
  bias_gradient();
  sink_gradient();
}
// The rows of a simdgroup stay, keys stream by.
void Planner::dq(const BackwardTile& tile) {
  const ParamsT<double>& p = problem.params;
  const int dim = round_up(p.dim, FRAGMENT), value_dim = round_up(p.value_dim, FRAGMENT);
  const int held = tile.in_registers ? 0 : held_bytes(tile.held_tiles, dim + value_dim, bytes()),
            groups = simdgroups(held, MOST_SIMDGROUPS);
  const Grid grid{{row_blocks(FRAGMENT * tile.held_tiles * groups), p.heads * parts(dim), sequences()}, {SIMD * groups}};
  Launch& l = gradient("backward_dq.metal", "backward_dq", grid);
  tiles(l, tile.held_tiles, tile.stream_tiles, tile.in_registers, true);
  add(l, {{"FA_KEEP", tile.keep},
          {"FA_PART", part_columns(dim)},
          {"FA_PARTS", parts(dim)},
          {"FA_VECTOR", has_words({p.q, p.k, p.v, p.dout, p.dq}) && part_columns(dim) * parts(dim) == dim}});
  memory(l, held * groups);
  writes(l, {Role::dq});
}
// The keys of a simdgroup stay, rows stream by. dk, dv: columns of each gradient that the launch makes, or 0.
void Planner::dkv(const BackwardTile& tile, int dk, int dv) {
  const ParamsT<double>& p = problem.params;
  const int dim = round_up(p.dim, FRAGMENT), value_dim = dk > 0 ? round_up(p.value_dim, FRAGMENT) : 0;
  const int held = tile.in_registers ? 0 : held_bytes(tile.held_tiles, dim + value_dim, bytes()),
            groups = simdgroups(held, MOST_SIMDGROUPS);
  const int columns = std::max(dk, dv), cut = parts(columns);
  const Grid grid{{key_blocks(FRAGMENT * tile.held_tiles * groups), p.kv_heads * cut, sequences()}, {SIMD * groups}};
  Launch& l = gradient("backward_dkv.metal", "backward_dkv", grid);
  tiles(l, tile.held_tiles, tile.stream_tiles, tile.in_registers, false);
  add(l, {{"FA_KEEP", tile.keep},
          {"FA_DK_PART", dk > 0 ? part_columns(dk) : 0},
          {"FA_DV_PART", dv > 0 ? part_columns(dv) : 0},
          {"FA_PARTS", cut},
          {"FA_VECTOR", has_words({p.q, p.k, p.v, p.dout, p.dk, p.dv}) && part_columns(columns) * cut == columns}});
  memory(l, held * groups);
  if (dk > 0) writes(l, {Role::dk});
  if (dv > 0) writes(l, {Role::dv});
}
// Elements of the bias stay, 8 rows x BIAS_KEYS a simdgroup; sequences and heads that share them come by.
void Planner::bias_gradient() {
  if (!problem.wanted(Role::dbias)) return;
  const ParamsT<double>& p = problem.params;
  const int dim = round_up(p.dim, FRAGMENT), value_dim = round_up(p.value_dim, FRAGMENT);
  const BiasTile& tile = first_fit(BIAS_TILES, bytes(), std::max(dim, value_dim));
  const int64_t* own = problem.bias_shape;
  const int shift = (problem.features & DROPOUT) != 0 ? p.k_offset & (BIAS_KEYS - 1) : 0;  // tiles begin where dropout's words do
  const int64_t tiles_of_keys = own[3] > 1 ? divide_up(own[3] + shift, BIAS_KEYS) : own[3];
  const int held = tile.in_registers ? 0 : held_bytes(1, dim + value_dim, bytes());
  const int groups = simdgroups(held, tiles_of_keys >= MOST_SIMDGROUPS ? MOST_SIMDGROUPS : 1);
  const Grid grid{{divide_up(tiles_of_keys, groups), divide_up(own[2], FRAGMENT), static_cast<int>(own[1] * own[0])}, {SIMD * groups}};
  Launch& l = gradient("backward_bias.metal", "bias_gradient", grid);
  tiles(l, 1, BIAS_KEYS / FRAGMENT, tile.in_registers, true);
  add(l, {{"FA_VECTOR", has_words({p.q, p.k, p.v, p.dout})}});
  memory(l, held * groups);
  writes(l, {Role::dbias});
}
void Planner::bias_gradient_plain() {
  if (!problem.wanted(Role::dbias)) return;
  const int64_t* own = problem.bias_shape;
  const Grid grid{{static_cast<int>(own[3]), static_cast<int>(own[2]), static_cast<int>(own[1] * own[0])}, {SIMD * PLAIN_SIMDGROUPS}};
  writes(gradient("plain.metal", "bias_gradient_plain", grid), {Role::dbias});
}
void Planner::sink_gradient() {
  if (!problem.wanted(Role::dsink)) return;
  Launch& l = launch("small.metal", "sink_gradient", problem.params.heads, 1, 1, 1);
  reads(l, {Role::lse});
  reads_delta(l);
  reads(l, {Role::sink});
  reads_places(l);
  writes(l, {Role::dsink});
}

// New keys into the caches, where there are some, which are then written in place; or rotated into a new array. And queries.
void Planner::append() {
  const ParamsT<double>& p = problem.params;
  if (problem.has(Role::k) || problem.wanted(Role::rotated_k)) {
    Launch& l = launch("small.metal", "append", divide_up(problem.new_rows, PLAIN_SIMDGROUPS), p.kv_heads, p.batch, PLAIN_SIMDGROUPS);
    l.params.appended = problem.new_rows;
    reads(l, {Role::new_k, Role::new_v, Role::cos, Role::sin});
    reads_places(l);
    for (Role r : {Role::k, Role::v})
      if (problem.has(r)) l.arguments.push_back(Argument{r, Source{r, -1}, true});
    writes(l, {Role::rotated_k});
  }
  if (problem.wanted(Role::rotated_q)) {
    Launch& l = launch("small.metal", "rotate_queries", divide_up(problem.max_rows, PLAIN_SIMDGROUPS), p.heads, p.batch, PLAIN_SIMDGROUPS);
    l.params.mask.rows = static_cast<int>(problem.max_rows);
    reads(l, {Role::q, Role::cos, Role::sin});
    reads_places(l);
    writes(l, {Role::rotated_q});
  }
}

void Planner::merge() {
  const ParamsT<double>& p = problem.params;
  Launch& l = launch("small.metal", "merge", row_blocks(PLAIN_SIMDGROUPS), p.heads, p.batch, PLAIN_SIMDGROUPS);
  reads(l, {Role::part_out, Role::part_lse});
  writes(l, {Role::out, Role::lse});
  l.params.q = contiguous(problem.max_rows, p.heads, p.value_dim);
}
}  // namespace

Plan plan(const Problem& problem, const Kernel& row, const Device&) {
  Planner planner(problem, row);
  const auto is = [&](const char* name) { return std::strcmp(row.name, name) == 0; };
  if (is("mlx_sdpa")) planner.mlx_sdpa();
  if (is("decode")) planner.decode();
  if (is("forward")) planner.forward();
  if (is("forward_tensor")) planner.forward_tensor();
  if (is("forward_plain")) planner.forward_plain();
  if (is("backward")) planner.backward();
  if (is("backward_plain")) planner.backward_plain();
  if (is("append")) planner.append();
  if (is("merge")) planner.merge();
  std::erase_if(planner.plan.launches,
                [](const Launch& l) { return l.grid.blocks[0] == 0 || l.grid.blocks[1] == 0 || l.grid.blocks[2] == 0; });
  return planner.plan;
}
}  // namespace fa::metal
