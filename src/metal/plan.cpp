#include "metal/plan.h"

#include <cstring>
#include <initializer_list>

#include "metal/tiles.h"

namespace fa::metal {
namespace {
using Roles = std::initializer_list<Role>;

struct Planner {
  const Problem& problem;
  Plan plan;

  Planner(const Problem& p, const Kernel& row) : problem(p), plan{p, &row, {}, {}} {}

  // A launch over `blocks` threadgroups of `simdgroups`. Arrays that the call has become arguments, those it writes behind those it reads.
  Launch& launch(const char* source, const char* kernel, int blocks_x, int blocks_y, int blocks_z, int simdgroups) {
    plan.launches.push_back(Launch{plan.row, kernel, problem.params, {}});
    Launch& l = plan.launches.back();
    const ParamsT<double>& p = problem.params;
    l.source = source;
    l.grid = Grid{{blocks_x, blocks_y, blocks_z}, {SIMD * simdgroups, 1, 1}};
    if (packed()) l.params.capacity = static_cast<int>(problem.has(Role::pages) ? p.capacity : problem.total_keys);
    l.constants = {
        {"FA_F", static_cast<int>(problem.features)},      {"FA_NEEDS", static_cast<int>(problem.needs & (VARLEN | CACHED | PAGED))},
        {"FA_DTYPE", static_cast<int>(problem.dtype)},     {"FA_DIM", round_up(p.dim, FRAGMENT)},
        {"FA_VALUE_DIM", round_up(p.value_dim, FRAGMENT)}, {"FA_SIMDGROUPS", simdgroups}};
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

  bool packed() const { return (problem.needs & VARLEN) != 0; }
  // the sequences, and behind packed ones the slots that belong to none
  int sequences() const { return problem.params.batch + (packed() ? 1 : 0); }

  // threadgroups of `rows` rows for the longest sequence; one at least where slots may belong to none
  int row_blocks(int rows) const { return std::max(divide_up(problem.max_rows, rows), packed() ? 1 : 0); }

  void forward_plain();
};

void Planner::forward_plain() {
  const int blocks = row_blocks(PLAIN_SIMDGROUPS);
  Launch& l = launch("plain.metal", "forward_plain", blocks, problem.params.heads, sequences(), PLAIN_SIMDGROUPS);
  reads(l, {Role::q, Role::k, Role::v, Role::seed, Role::slopes, Role::bias, Role::sink});
  reads_places(l);
  writes(l, {Role::out, Role::lse});
}
}  // namespace

Plan plan(const Problem& problem, const Kernel& row, const Device&) {
  Planner planner(problem, row);
  const auto is = [&](const char* name) { return std::strcmp(row.name, name) == 0; };
  if (is("forward_plain")) planner.forward_plain();
  std::erase_if(planner.plan.launches,
                [](const Launch& l) { return l.grid.blocks[0] == 0 || l.grid.blocks[1] == 0 || l.grid.blocks[2] == 0; });
  return planner.plan;
}
}  // namespace fa::metal
