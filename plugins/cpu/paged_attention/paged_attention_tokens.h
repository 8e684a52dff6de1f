// What happens to new tokens before the attention: they enter the cache, their queries are prepared.
#pragma once

#include "cpu/paged_attention/paged_attention_split.h"
#include "cpu/paged_attention/paged_attention_step.h"

namespace kvfold {

// Writes the keys and values of tokens [begin, end) into their slots and prepares their queries.
// `position(token)` is given as an array. Query row of (kv head, token, head of the group):
// (kv_head * tokens + token) * group + head.
//
// LAW: cache bytes are those of plugins/paged_attention/reference.py, bit for bit. So every
// product, sum and quotient below is rounded on its own, in the reference's order.
template <typename Cache>
void ingest_tokens(const AttentionStep<Cache>& step, const AttentionAttributes& attributes,
                   const int64_t* positions, int64_t begin, int64_t end, const QueryRows& rows);

}  // namespace kvfold
