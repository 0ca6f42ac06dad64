#include "cuda/plan.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "cuda/tiles.h"

namespace fa::cuda {
namespace {
using Roles = std::initializer_list<Role>;
constexpr unsigned LAYOUT =
    VARLEN | CACHED | PAGED | USED | CHUNK;  // Need bits that a kernel's text depends on; the others are numbers in Params
constexpr Roles PLACES = {Role::cu_rows, Role::cu_keys,    Role::used_rows, Role::used_keys,
                          Role::lengths, Role::cache_rows, Role::leftpad,   Role::pages};

// A kernel's tile for a call, from the table of 16-bit elements or that of float32; null where none fits.
using Bytes = int (*)(const Tile&, int, int, int);
template <int N, int M>
const Tile* tile_of(const Tile (&halves)[N], const Tile (&floats)[M], Bytes bytes, const Problem& problem, const Device& d) {
  const int dim = round_up(problem.params.dim, PANEL), value_dim = round_up(problem.params.value_dim, PANEL);
  return problem.dtype == DType::f32 ? choose(floats, bytes, dim, value_dim, 4, problem.max_keys, d.shared_bytes)
                                     : choose(halves, bytes, dim, value_dim, 2, problem.max_keys, d.shared_bytes);
}
const Tile* forward_tile(const Problem& problem, const Device& d) { return tile_of(FORWARD, FORWARD_F32, forward_bytes, problem, d); }
const Tile* backward_tile(const Problem& problem, const Device& d) { return tile_of(BACKWARD, BACKWARD_F32, backward_bytes, problem, d); }
const Tile* backward_rows_tile(const Problem& problem, const Device& d) {
  return tile_of(BACKWARD_ROWS, BACKWARD_ROWS_F32, backward_rows_bytes, problem, d);
}

struct Planner {
  const Problem& problem;
  const ParamsT<double>& p;
  const Device& device;
  Plan plan;

  Planner(const Problem& of, const Kernel& row, const Device& on) : problem(of), p(of.params), device(on), plan{of, &row, {}, {}} {
    plan.launches.reserve(8);
  }

  int temporary(DType dtype, int64_t count) {
    plan.temporaries.push_back(Temporary{dtype, count});
    return static_cast<int>(plan.temporaries.size()) - 1;
  }
  static void bind(Launch& l, Role as, int temporary) { l.arguments.push_back(Argument{as, Source{Role::COUNT, temporary}}); }

  // Arrays that the call has become arguments, and so do those that place rows and keys. Valid until the next launch.
  Launch& launch(const char* source, const char* kernel, Grid grid, unsigned features, Roles roles);
  Launch& plain(const char* source, const char* kernel, Grid grid, Roles roles);
  Launch& small(const char* source, const char* kernel, Grid grid, Roles roles);
  Launch& merge_parts(int warps, Roles roles);  // so many for a row; part_out is contiguous
  Launch& tiled(const char* source, const char* kernel, const Tile& tile, Bytes bytes, Grid grid, Roles roles);
  // Blocks of so many rows, heads and sequences, which kernels take in turns where there are more than a grid holds.
  static Grid rows(int64_t count, int a_block, int heads, int sequences, int warps) {
    return Grid{{divide_up(count, a_block), std::min(heads, GRID_LIMIT), std::min(sequences, GRID_LIMIT)}, {warps * WARP, 1, 1}};
  }

  void forward();
  void forward_plain();
  void decode();
  void decode_plain();
  void backward();
  void backward_plain();
  void append();
  void merge();

 private:
  bool packed() const { return (problem.needs & VARLEN) != 0; }
  bool has_absent() const { return (problem.needs & (VARLEN | USED)) != 0; }
  DType real() const { return problem.dtype == DType::f64 ? DType::f64 : DType::f32; }
  Strides contiguous(int64_t rows, int heads, int dim) const {
    return Strides{packed() ? 0 : rows * heads * dim, int64_t{heads} * dim, dim};
  }
  Grid longest_rows(int a_block, int warps) const { return rows(problem.max_rows, a_block, p.heads, p.batch, warps); }
  // plain.cuh's: rows are (position * group + head of the group)
  Grid grouped_rows(int splits) const {
    Grid grid = rows(problem.max_rows * p.group, PLAIN_WARPS, p.kv_heads, p.batch, PLAIN_WARPS);
    grid.blocks[0] *= splits;
    return grid;
  }
  int longest_span() const;
  void join(Launch& l, int parts);
  void clear(Roles roles);
  void after_forward();
  Launch& with_delta(Launch& l) const {
    if (problem.wanted(Role::delta))
      l.arguments.push_back(Argument{Role::delta, Source{Role::delta, -1}});
    else
      bind(l, Role::delta, delta_);
    return l;
  }
  void delta();
  void dbias();
  void after_gradients();
  int delta_ = -1;
};

Launch& Planner::launch(const char* source, const char* kernel, Grid grid, unsigned features, Roles roles) {
  plan.launches.push_back(Launch{plan.row, kernel, p, {}});
  Launch& l = plan.launches.back();
  l.source = source;
  l.grid = grid;
  l.arguments.reserve(roles.size() + PLACES.size() + 2);
  const uint64_t present = problem.given | problem.wants;
  for (Role r : roles)
    if (present & bit(r)) l.arguments.push_back(Argument{r, Source{r, -1}});
  for (Role r : PLACES)
    if (present & bit(r)) l.arguments.push_back(Argument{r, Source{r, -1}});
  const DType part = problem.pass == Pass::merge ? problem.dtype : real();
  l.constants = {{"FA_F", static_cast<int>(features)},
                 {"FA_NEEDS", static_cast<int>(problem.needs & LAYOUT)},
                 {"FA_DTYPE", static_cast<int>(problem.dtype)},
                 {"FA_OUT", static_cast<int>(problem.out_dtype)},
                 {"FA_PART", static_cast<int>(part)},
                 {"FA_BIAS", static_cast<int>((features & BIAS) != 0 ? problem.bias_dtype : DType::none)},
                 {"FA_SINK", static_cast<int>(problem.has(Role::sink) ? problem.sink_dtype : DType::none)}};
  return l;
}

Launch& Planner::plain(const char* source, const char* kernel, Grid grid, Roles roles) {
  Launch& l = launch(source, kernel, grid, problem.features, roles);
  l.constants.insert(l.constants.end(),
                     {{"FA_DIM", round_up(p.dim, WARP)}, {"FA_VALUE_DIM", round_up(p.value_dim, WARP)}, {"FA_WARPS", PLAIN_WARPS}});
  return l;
}

Launch& Planner::small(const char* source, const char* kernel, Grid grid, Roles roles) {
  Launch& l = launch(source, kernel, grid, 0, roles);
  l.constants.push_back({"FA_WARPS", SMALL_WARPS});
  return l;
}
Launch& Planner::merge_parts(int warps, Roles roles) {
  Launch& l = small("merge.cuh", "merge", longest_rows(SMALL_WARPS / warps, SMALL_WARPS), roles);
  l.constants.push_back({"FA_SPLIT", warps});
  l.params.q = contiguous(problem.max_rows, p.heads, p.value_dim);
  return l;
}

Launch& Planner::tiled(const char* source, const char* kernel, const Tile& t, Bytes bytes, Grid grid, Roles roles) {
  Launch& l = launch(source, kernel, grid, problem.features, roles);
  l.shared_bytes = bytes(t, round_up(p.dim, PANEL), round_up(p.value_dim, PANEL), problem.dtype == DType::f32 ? 4 : 2);
  l.constants.insert(l.constants.end(), {{"FA_DIM", round_up(p.dim, PANEL)},
                                         {"FA_VALUE_DIM", round_up(p.value_dim, PANEL)},
                                         {"FA_BM", t.bm},
                                         {"FA_BN", t.bn},
                                         {"FA_WARPS", t.warps},
                                         {"FA_SPLIT", t.split},
                                         {"FA_STAGES", t.stages},
                                         {"FA_BLOCKS", t.blocks}});
  return l;
}

constexpr Roles FORWARD_ROLES = {Role::q, Role::k, Role::v, Role::out, Role::lse, Role::seed, Role::slopes, Role::bias, Role::sink};

void Planner::forward() {
  const Tile& t = *forward_tile(problem, device);
  const Grid grid{{divide_up(problem.max_rows, t.bm), p.heads, p.batch}, {t.warps * WARP, 1, 1}};
  tiled("forward_sm80.cuh", "forward", t, forward_bytes, grid, FORWARD_ROLES);
  after_forward();
}

void Planner::forward_plain() {
  plain("plain.cuh", "forward", grouped_rows(1), FORWARD_ROLES);
  after_forward();
}

// Long keys are cut into splits; each split's result goes to a temporary, and a merge joins them.
void Planner::decode() {
  const int row_blocks = divide_up(problem.max_rows * p.group, DECODE_BM);
  const int parts =
      decode_parts(longest_span(), int64_t{p.batch} * p.kv_heads * row_blocks, int64_t{device.cores} * DECODE_BLOCKS, problem.splits);
  const DecodeTile t = decode_tile(p.dim, p.value_dim, device.shared_bytes);
  const Grid grid{{parts, p.kv_heads * row_blocks, p.batch}, {DECODE_WARPS * WARP, 1, 1}};
  Launch& l = launch("decode.cuh", "decode", grid, problem.features, FORWARD_ROLES);
  l.shared_bytes = t.bytes();
  l.constants.insert(
      l.constants.end(),
      {{"FA_DIM", t.dim}, {"FA_VALUE_DIM", t.value_dim}, {"FA_WARPS", DECODE_WARPS}, {"FA_SPLIT", t.split}, {"FA_STAGES", t.stages}});
  join(l, parts);
  after_forward();
}
void Planner::decode_plain() {
  const int64_t blocks = int64_t{divide_up(problem.max_rows * p.group, PLAIN_WARPS)} * p.batch * p.kv_heads;
  const int parts = decode_parts(longest_span(), blocks, int64_t{device.cores} * DECODE_BLOCKS_PLAIN, problem.splits);
  join(plain("plain.cuh", "forward", grouped_rows(parts), FORWARD_ROLES), parts);
  after_forward();
}
// Keys that the rows of one sequence see together, at most.
int Planner::longest_span() const {
  const Mask& m = p.mask;
  const int64_t window = int64_t{m.left} + m.right + m.rows;  // beyond all keys where one side is open
  return static_cast<int>(std::min<int64_t>(m.keys, window));
}
// `l` computes parts of its rows' results.
void Planner::join(Launch& l, int parts) {
  const int split = problem.splits > 0 ? 1 : DECODE_SPLIT_MIN;  // keys at least
  l.params.split_keys = split;
  l.params.splits = parts;
  if (parts == 1) return;
  const int64_t count = problem.total_rows * p.heads;
  const int part_out = temporary(real(), parts * count * p.value_dim), part_lse = temporary(real(), parts * count);
  const Strides strides = contiguous(problem.max_rows, p.heads, p.value_dim);
  l.params.out = strides;
  bind(l, Role::part_out, part_out);
  bind(l, Role::part_lse, part_lse);
  Launch& merge = merge_parts(SMALL_WARPS, {Role::out, Role::lse});
  merge.params.splits = parts;
  merge.params.split_keys = split;
  bind(merge, Role::part_out, part_out);
  bind(merge, Role::part_lse, part_lse);
}

// Rows and keys that no sequence owns hold zeros (lse -inf); packed slots behind the last sequence belong to one more.
void Planner::clear(Roles roles) {
  if (!has_absent()) return;
  const int64_t count = std::min<int64_t>(std::max(problem.max_rows, problem.max_keys), SMALL_WARPS * CLEAR_BLOCKS);
  small("clear.cuh", "clear",
        rows(std::max<int64_t>(count, 1), SMALL_WARPS, problem.pass == Pass::backward ? 2 : 1, p.batch + (packed() ? 1 : 0), SMALL_WARPS),
        roles);
}
void Planner::after_forward() {
  clear({Role::out, Role::lse});
  if (!problem.wanted(Role::probabilities)) return;
  plain("probabilities.cuh", "probabilities", longest_rows(PLAIN_WARPS, PLAIN_WARPS),
        {Role::q, Role::k, Role::probabilities, Role::seed, Role::slopes, Role::bias, Role::sink});
}

void Planner::delta() {
  if (!problem.wanted(Role::delta)) delta_ = temporary(real(), problem.total_rows * p.heads);
  with_delta(
      small("delta.cuh", "delta", longest_rows(SMALL_WARPS * SMALL_ROWS, SMALL_WARPS), {Role::dout, Role::out, Role::lse, Role::dlse}));
}

constexpr const char* GRADIENTS = "plain_gradient.cuh";
constexpr Roles BACKWARD_ROLES = {Role::q,      Role::k,    Role::v,    Role::dout, Role::lse, Role::seed,
                                  Role::slopes, Role::bias, Role::sink, Role::dq,   Role::dk,  Role::dv};

// dq is added up in float32, in whatever order blocks come; deterministic calls compute it by rows instead.
void Planner::backward() {
  const Tile& t = *backward_tile(problem, device);
  const int dim = round_up(p.dim, PANEL);
  const bool adds = (problem.needs & DETERMINISTIC) == 0;
  const int sums =
      adds ? temporary(DType::f32, tiles_of_sums(t, packed(), p.batch, problem.max_rows, problem.total_rows) * p.heads * t.bm * dim) : -1;
  const Grid row_tiles{{divide_up(problem.max_rows, t.bm), p.heads, p.batch}, {t.warps * WARP, 1, 1}};
  const auto of_sums = [&](const char* kernel, Roles roles) {
    bind(tiled("row_sums_sm80.cuh", kernel, t, row_sums_bytes, row_tiles, roles), Role::part_out, sums);
  };
  delta();
  if (adds) of_sums("clear_sums", {});
  const Grid grid{{divide_up(problem.max_keys, t.bn), p.kv_heads, p.batch}, {t.warps * WARP, 1, 1}};
  Launch& l = with_delta(tiled("backward_sm80.cuh", "backward", t, backward_bytes, grid, BACKWARD_ROLES));
  l.constants.push_back({"FA_DQ", adds});
  if (adds) {
    bind(l, Role::part_out, sums);
    of_sums("gather_sums", {Role::dq});
  } else {
    const Tile& r = *backward_rows_tile(problem, device);
    with_delta(tiled("backward_rows_sm80.cuh", "row_gradient", r, backward_rows_bytes, longest_rows(r.bm, r.warps), BACKWARD_ROLES));
  }
  dbias();
  after_gradients();
}

void Planner::backward_plain() {
  delta();
  with_delta(plain(GRADIENTS, "row_gradient", longest_rows(PLAIN_WARPS, PLAIN_WARPS), BACKWARD_ROLES));
  with_delta(plain(GRADIENTS, "key_gradient", rows(problem.max_keys, PLAIN_WARPS, p.kv_heads, p.batch, PLAIN_WARPS), BACKWARD_ROLES));
  dbias();
  after_gradients();
}

void Planner::dbias() {
  if (!problem.wanted(Role::dbias)) return;
  int64_t warps = divide_up(problem.bias_shape[3], WARP);
  for (int i = 0; i < 3; i++) warps *= problem.bias_shape[i];
  Launch& l =
      with_delta(plain("bias_gradient.cuh", "bias_gradient",
                       rows(std::min<int64_t>(warps, int64_t{GRID_LIMIT} * PLAIN_WARPS), PLAIN_WARPS, 1, 1, PLAIN_WARPS), BACKWARD_ROLES));
  l.arguments.push_back(Argument{Role::dbias, Source{Role::dbias, -1}});
}
void Planner::after_gradients() {
  if (problem.wanted(Role::dsink))
    with_delta(small("sink_gradient.cuh", "sink_gradient", Grid{{p.heads, 1, 1}, {SMALL_WARPS * WARP, 1, 1}},
                     {Role::lse, Role::sink, Role::dsink}));
  clear({Role::dq, Role::dk, Role::dv, Role::delta});
}

void Planner::append() {
  const bool turns = problem.wanted(Role::rotated_q);
  const int64_t count = std::max<int64_t>(problem.new_rows, turns ? problem.max_rows : 0);
  Launch& l = small("append.cuh", "append", rows(count, SMALL_WARPS, p.kv_heads + (turns ? p.heads : 0), p.batch, SMALL_WARPS),
                    {Role::q, Role::k, Role::v, Role::new_k, Role::new_v, Role::cos, Role::sin, Role::rotated_q, Role::rotated_k});
  l.params.mask.rows = static_cast<int>(problem.max_rows);
}

void Planner::merge() { merge_parts(1, {Role::part_out, Role::part_lse, Role::out, Role::lse}); }

const char* grid_refuses(const Problem& problem) {
  return problem.params.heads > GRID_LIMIT || problem.params.batch > GRID_LIMIT ? "takes at most 65535 heads and sequences" : nullptr;
}
}  // namespace

const char* forward_refuses(const Problem& problem, const Device& device) {
  if (const char* why = grid_refuses(problem)) return why;
  return forward_tile(problem, device) ? nullptr : "has no tile that fits the shared memory of this device";
}
const char* backward_refuses(const Problem& problem, const Device& device) {
  if (const char* why = grid_refuses(problem)) return why;
  const bool rows = (problem.needs & DETERMINISTIC) == 0 || backward_rows_tile(problem, device);
  return backward_tile(problem, device) && rows ? nullptr : "has no tile that fits the shared memory of this device";
}
static_assert(DECODE_ROWS == 64, "say so below");
const char* decode_refuses(const Problem& problem, const Device&) {
  if ((problem.needs & (CACHED | PAGED)) == 0 && problem.max_rows > 1)
    return "takes one query position without a cache: a backward pass repeats the rounding of forward, not of decode";
  if (problem.max_rows * problem.params.group > DECODE_ROWS) return "takes at most 64 query rows (position * group) of a key/value head";
  return grid_refuses(problem);
}

Plan plan(const Problem& problem, const Kernel& row, const Device& device) {
  Planner planner(problem, row, device);
  const auto is = [&](const char* name) { return std::strcmp(row.name, name) == 0; };
  if (is("decode")) planner.decode();
  if (is("decode_plain")) planner.decode_plain();
  if (is("forward_sm80")) planner.forward();
  if (is("forward_plain")) planner.forward_plain();
  if (is("backward_sm80")) planner.backward();
  if (is("backward_plain")) planner.backward_plain();
  if (is("append")) planner.append();
  if (is("merge")) planner.merge();
  // nothing to do is no launch
  std::erase_if(planner.plan.launches,
                [](const Launch& l) { return l.grid.blocks[0] == 0 || l.grid.blocks[1] == 0 || l.grid.blocks[2] == 0; });
  return planner.plan;
}
}  // namespace fa::cuda
