// The sequences of a call as the host reads them from cu_rows, cu_keys, lengths, used_rows, used_keys, leftpad, cache_rows, pages.
#pragma once
#include <vector>

#include "core/plan.h"
#include "cpu/job.h"

namespace fa::cpu {
// `batch` sequences and an empty last one that begins where packed rows and keys end: what lies behind it belongs to nobody.
std::vector<Sequence> read_sequences(const Problem& problem, const Buffers& buffers);
}  // namespace fa::cpu
