// A C++ program with arrays on a GPU: forward and backward through fa::run, compared with a plain loop. Runs where device memory is host
// memory, too (tests/test_cuda_emulator.py).
#include <flash_attn/flash_attn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {
constexpr int ROWS = 20, KEYS = 45, DIM = 24;
using Matrix = std::vector<float>;

fa::Tensor on_gpu(Matrix& values, std::initializer_list<int64_t> shape) {
  fa::Tensor made = fa::tensor(values.data(), fa::DType::f32, shape);
  made.place = {fa::DeviceKind::cuda, 0};
  return made;
}
Matrix random(int count) {
  Matrix values(static_cast<size_t>(count));
  for (float& x : values) x = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 0.5F;
  return values;
}
void run_with_workspace(const fa::Call& call) {
  void* const workspace = std::aligned_alloc(256, static_cast<size_t>((fa::workspace_bytes(call) + 256) / 256 * 256));
  fa::run(call, workspace);
  std::free(workspace);
}
}  // namespace

int main() {
  Matrix q = random(ROWS * DIM), k = random(KEYS * DIM), v = random(KEYS * DIM), dout = random(ROWS * DIM);
  Matrix out(q.size()), lse(ROWS), dq(q.size()), dk(k.size()), dv(v.size());
  const auto row_array = [](Matrix& x) { return on_gpu(x, {1, ROWS, 1, DIM}); };
  const auto key_array = [](Matrix& x) { return on_gpu(x, {1, KEYS, 1, DIM}); };
  for (const fa::Pass pass : {fa::Pass::forward, fa::Pass::backward}) {
    fa::Call call{"device_call", pass};
    call[fa::Role::q] = row_array(q), call[fa::Role::k] = key_array(k), call[fa::Role::v] = key_array(v);
    call[fa::Role::out] = row_array(out), call[fa::Role::lse] = on_gpu(lse, {1, 1, ROWS});
    if (pass == fa::Pass::backward) {
      call[fa::Role::dout] = row_array(dout), call[fa::Role::dq] = row_array(dq);
      call[fa::Role::dk] = key_array(dk), call[fa::Role::dv] = key_array(dv);
    }
    run_with_workspace(call);
  }

  // softmax(q k' / sqrt(dim)) v, and dv = P' dout
  double worst = 0;
  std::vector<double> expected_dv(v.size());
  for (int i = 0; i < ROWS; i++) {
    const auto at = [](const Matrix& x, int row, int d) { return static_cast<double>(x[static_cast<size_t>(row * DIM + d)]); };
    std::vector<double> weights(KEYS);
    double sum = 0;
    for (int j = 0; j < KEYS; j++) {
      double score = 0;
      for (int d = 0; d < DIM; d++) score += at(q, i, d) * at(k, j, d);
      sum += weights[static_cast<size_t>(j)] = std::exp(score / std::sqrt(static_cast<double>(DIM)));
    }
    for (int d = 0; d < DIM; d++) {
      double expected = 0;
      for (int j = 0; j < KEYS; j++) {
        const double weight = weights[static_cast<size_t>(j)] / sum;
        expected += weight * at(v, j, d);
        expected_dv[static_cast<size_t>(j * DIM + d)] += weight * at(dout, i, d);
      }
      worst = std::max(worst, std::fabs(expected - at(out, i, d)));
    }
    worst = std::max(worst, std::fabs(std::log(sum) - static_cast<double>(lse[static_cast<size_t>(i)])));
  }
  for (size_t n = 0; n < dv.size(); n++) worst = std::max(worst, std::fabs(expected_dv[n] - static_cast<double>(dv[n])));
  std::printf("largest difference %.1e\n", worst);
  return worst < 1e-5 ? 0 : 1;
}
