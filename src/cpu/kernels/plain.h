// Attention one element at a time, straight from src/semantics: slow, obvious, takes every call; the last row of the table, and the
// kernels of float64. Products and sums are float64 whatever the dtype. Memory: one row a task.
//
//   forward          rows of one query head -> out, lse
//   row_gradient     rows of one query head -> dq
//   key_gradient     keys of one key/value head -> dk, dv
//   bias_gradient    rows of attn_bias (task.sequence: its batch index, task.head: its head) -> dbias
//   probabilities    rows of one query head -> S_dmask, from the lse; rows and keys that no sequence has become 0
#pragma once
#include "cpu/job.h"

namespace fa::cpu::plain {
void forward(const JobT<double>& job, const Task& task);
void row_gradient(const JobT<double>& job, const Task& task);
void key_gradient(const JobT<double>& job, const Task& task);
void bias_gradient(const JobT<double>& job, const Task& task);
void probabilities(const JobT<double>& job, const Task& task);
}  // namespace fa::cpu::plain
