#include "cpu/paged_attention/paged_attention.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "cpu/paged_attention/paged_attention_split.h"
#include "cpu/paged_attention/paged_attention_tokens.h"

namespace kvfold {
namespace {

// Rows (tokens x heads of a group) that share one packing of a split's keys and values.
constexpr int64_t kUnitRows = 96;
constexpr int64_t kUnitTokens = 64;
// Fewer units than this would leave threads idle: their splits become tasks of their own.
constexpr int64_t kFewUnits = 16;
// So do the splits of a unit this small (decoding), whose partials take little memory.
constexpr int64_t kFewTokens = 4;
constexpr int64_t kIngestTokens = 16;
// So many rows of partials are merged before another thread would have begun.
constexpr int64_t kFewRows = 512;

// Uninitialised memory, aligned for every instruction set.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(new uint8_t[bytes + 64]) {}
  uint8_t* data() const { return bytes_.get() + (64 - reinterpret_cast<uintptr_t>(bytes_.get()) % 64); }

 private:
  std::unique_ptr<uint8_t[]> bytes_;
};

// The scratch of one thread, kept between calls.
uint8_t* thread_scratch() {
  thread_local Buffer buffer(kScratchBytes);
  return buffer.data();
}

// Neighbouring new tokens of one sequence with the query heads of one KV head.
struct Unit {
  int64_t sequence, kv_head, token, tokens, position;
  int64_t first_partial = -1;  // row of its first split's partials; -1: one task runs all splits
};

struct Task {
  int64_t unit;
  int64_t split;    // -1: all
  int64_t partial;  // row of this split's partial states
};

// Owns the states of `rows` rows, which begin as "no key seen yet".
class States {
 public:
  States(int64_t rows, int64_t head_size)
      : stride_(padded_channels(static_cast<int>(head_size))), max_(rows, -std::numeric_limits<float>::infinity()),
        sum_(rows, 0.0f), out_(rows * stride_, 0.0f) {}
  State from(int64_t row) { return {&max_[row], &sum_[row], &out_[row * stride_]}; }

 private:
  int64_t stride_;
  std::vector<float> max_, sum_, out_;
};

// One call of the op.
template <typename Cache>
class Attention {
 public:
  Attention(const AttentionStep<Cache>& step, const AttentionAttributes& attributes)
      : step_(step), attributes_(attributes), group_(attributes.num_heads / attributes.kv_num_heads),
        head_size_(static_cast<int>(step.head_size)), kernels_(attention_kernels<Cache>()),
        query_(step.tokens * attributes.num_heads * row_bytes()), scale_(step.tokens * attributes.num_heads),
        total_(step.tokens * attributes.num_heads) {}

  void run(const Context& context) {
    plan_units();
    context.parallel_for((step_.tokens + kIngestTokens - 1) / kIngestTokens, [&](int64_t block) {
      const int64_t begin = block * kIngestTokens, end = std::min(begin + kIngestTokens, step_.tokens);
      ingest_tokens(step_, attributes_, positions_.data(), begin, end, query_rows(0));
    });
    const int64_t partial_rows = plan_tasks();
    States partials(partial_rows, head_size_);
    context.parallel_for(tasks_.size(), [&](int64_t index) { run_task(tasks_[index], partials); });
    const auto merge = [&](int64_t index) {
      if (units_[index].first_partial >= 0) merge_partials(units_[index], partials);
    };
    if (partial_rows > kFewRows) {
      context.parallel_for(units_.size(), merge);
    } else if (partial_rows > 0) {
      for (size_t index = 0; index < units_.size(); ++index) merge(index);
    }
  }

 private:
  int64_t row_bytes() const { return 4 * padded_channels(static_cast<int>(step_.head_size)); }
  QueryRows query_rows(int64_t row) {
    return {query_.data() + row * row_bytes(), scale_.data() + row, total_.data() + row};
  }

  void plan_units() {
    positions_.resize(step_.tokens);
    const int64_t most = std::clamp<int64_t>(kUnitRows / group_, 1, kUnitTokens);
    for (int64_t sequence = 0; sequence < step_.sequences; ++sequence) {
      const int64_t begin = step_.starts[sequence], end = step_.starts[sequence + 1];
      for (int64_t token = begin; token < end; ++token) positions_[token] = step_.past[sequence] + token - begin;
      for (int64_t token = begin; token < end; token += most) {
        for (int64_t head = 0; head < attributes_.kv_num_heads; ++head) {
          units_.push_back({sequence, head, token, std::min(most, end - token), positions_[token]});
        }
      }
    }
  }

  // Neighbouring KV heads of one split follow each other: their rows share pages.
  int64_t plan_tasks() {
    const bool few = static_cast<int64_t>(units_.size()) < kFewUnits;
    int64_t rows = 0;
    for (size_t first = 0; first < units_.size(); first += attributes_.kv_num_heads) {
      const auto heads = static_cast<size_t>(attributes_.kv_num_heads);
      const std::vector<int64_t> splits = visible_splits(units_[first]);
      if (splits.size() == 1 || (!few && units_[first].tokens > kFewTokens)) {
        for (size_t head = 0; head < heads; ++head) tasks_.push_back({static_cast<int64_t>(first + head), -1, -1});
        continue;
      }
      const int64_t unit_rows = units_[first].tokens * group_;
      for (size_t head = 0; head < heads; ++head) {
        units_[first + head].first_partial = rows + head * splits.size() * unit_rows;
      }
      for (size_t i = 0; i < splits.size(); ++i) {
        for (size_t head = 0; head < heads; ++head) {
          const int64_t partial = units_[first + head].first_partial + static_cast<int64_t>(i) * unit_rows;
          tasks_.push_back({static_cast<int64_t>(first + head), splits[i], partial});
        }
      }
      rows += heads * splits.size() * unit_rows;
    }
    return rows;
  }

  // First key in the window of the unit's first token.
  int64_t window_begin(const Unit& unit) const {
    return attributes_.window < 0 ? 0 : std::max<int64_t>(0, unit.position - attributes_.window + 1);
  }

  // Splits with a key that some row of the unit sees, by rising position.
  std::vector<int64_t> visible_splits(const Unit& unit) const {
    const int64_t end = unit.position + unit.tokens, from = window_begin(unit) / kSplit;
    const int64_t sinks = std::min((std::min(attributes_.sinks, end) + kSplit - 1) / kSplit, from);
    std::vector<int64_t> splits;
    for (int64_t split = 0; split < sinks; ++split) splits.push_back(split);
    for (int64_t split = from; split * kSplit < end; ++split) splits.push_back(split);
    return splits;
  }

  void run_task(const Task& task, States& partials) {
    const Unit& unit = units_[task.unit];
    if (task.split >= 0) {
      attend(unit, task.split, partials.from(task.partial));
      return;
    }
    States states(unit.tokens * group_, head_size_);
    for (int64_t split : visible_splits(unit)) attend(unit, split, states.from(0));
    finish(unit, states.from(0));
  }

  void attend(const Unit& unit, int64_t index, const State& state) {
    const int64_t first_key = index * kSplit, end = unit.position + unit.tokens - first_key;
    const int64_t window = window_begin(unit) - first_key, sinks = attributes_.sinks - first_key;
    int64_t offsets[kSplit];
    Split split;
    split.begin = static_cast<int>(sinks > 0 ? 0 : std::max<int64_t>(0, window));
    split.end = static_cast<int>(std::min<int64_t>({kSplit, end, window < kSplit ? kSplit : sinks}));
    locate_keys(unit, first_key, split.begin, split.end, offsets);
    split.key_cache = step_.key_cache;
    split.value_cache = step_.value_cache;
    split.offsets = offsets;
    split.first_key = first_key;
    split.rows = static_cast<int>(unit.tokens * group_);
    split.query = query_rows((unit.kv_head * step_.tokens + unit.token) * group_);
    split.first_position = unit.position;
    split.group = static_cast<int>(group_);
    split.window = attributes_.window;
    split.sinks = attributes_.sinks;
    split.softcap = attributes_.softcap;
    split.head_size = head_size_;
    kernels_.attend(split, state, thread_scratch());
  }

  // Where the keys [begin, end) of a split lie in the caches; -1 for all others and unmapped pages.
  void locate_keys(const Unit& unit, int64_t first_key, int begin, int end, int64_t* offsets) const {
    std::fill(offsets, offsets + kSplit, int64_t{-1});
    const int32_t* pages = step_.table + unit.sequence * step_.table_width;
    const int64_t row = attributes_.kv_num_heads * step_.head_size;
    for (int64_t key = begin; key < end;) {
      const int64_t page = (first_key + key) / step_.page_size, slot = (first_key + key) % step_.page_size;
      const int64_t stop = std::min<int64_t>(end, key + step_.page_size - slot);
      if (pages[page] >= 0) {
        int64_t offset = (pages[page] * step_.page_size + slot) * row + unit.kv_head * step_.head_size;
        for (int64_t i = key; i < stop; ++i, offset += row) offsets[i] = offset;
      }
      key = stop;
    }
  }

  void merge_partials(const Unit& unit, States& partials) {
    const int64_t rows = unit.tokens * group_;
    const auto splits = static_cast<int64_t>(visible_splits(unit).size());
    const State into = partials.from(unit.first_partial);
    for (int64_t split = 1; split < splits; ++split) {
      const State from = partials.from(unit.first_partial + split * rows);
      for (int64_t row = 0; row < rows; ++row) kernels_.merge(into, row, from, row, head_size_);
    }
    finish(unit, into);
  }

  void finish(const Unit& unit, const State& state) {
    for (int64_t row = 0; row < unit.tokens * group_; ++row) {
      const int64_t head = unit.kv_head * group_ + row % group_, token = unit.token + row / group_;
      Finish finish;
      finish.head_sink = step_.head_sink == nullptr ? nullptr : step_.head_sink + head;
      finish.v_scale = step_.v_scale == nullptr ? nullptr : step_.v_scale + unit.kv_head * step_.head_size;
      finish.out = step_.output + (token * attributes_.num_heads + head) * step_.head_size;
      finish.head_size = head_size_;
      kernels_.finish(state, row, finish);
    }
  }

  const AttentionStep<Cache>& step_;
  const AttentionAttributes& attributes_;
  const int64_t group_;
  const int head_size_;
  const AttentionKernels& kernels_;
  Buffer query_;
  std::vector<float> scale_;
  std::vector<int32_t> total_;
  std::vector<int64_t> positions_;
  std::vector<Unit> units_;
  std::vector<Task> tasks_;
};

}  // namespace

template <>
const AttentionKernels& attention_kernels<float>() {
#if defined(__x86_64__)
  static const AttentionKernels* const kernels[] = {&kAttentionFloatPortable, &kAttentionFloatAvx2,
                                                    &kAttentionFloatAvx512Vnni};
  static_assert(sizeof kernels / sizeof *kernels == kIsaCount, "one for each instruction set");
  return *kernels[static_cast<int>(active_isa())];
#else
  return kAttentionFloatPortable;
#endif
}

template <>
const AttentionKernels& attention_kernels<int8_t>() {
#if defined(__x86_64__)
  static const AttentionKernels* const kernels[] = {&kAttentionInt8Portable, &kAttentionInt8Avx2,
                                                    &kAttentionInt8Avx512Vnni};
  static_assert(sizeof kernels / sizeof *kernels == kIsaCount, "one for each instruction set");
  return *kernels[static_cast<int>(active_isa())];
#else
  return kAttentionInt8Portable;
#endif
}

template <typename Cache>
PagedAttention<Cache>::PagedAttention(const Attributes& attributes)
    : attributes_(read_attributes(attributes, std::is_same<Cache, int8_t>::value)) {}

template <typename Cache>
void PagedAttention<Cache>::compute(const Context& context) const {
  const auto step = read_step<Cache>(context, attributes_);
  Attention<Cache>(step, attributes_).run(context);
}

template <typename Cache>
const OpDeclaration& PagedAttention<Cache>::declaration() {
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  constexpr auto kCache = ElementType<Cache>::value;
  static const OpDeclaration declaration = {
      "PagedAttention",
      {{kFloat}, {kFloat, true}, {kFloat, true}, {kCache}, {kCache}, {kInt32}, {kInt32}, {kInt32},
       {kFloat, true}, {kFloat, true}, {kInt32}, {kFloat, true}, {kFloat, true}, {kFloat, true}, {kFloat, true},
       {kFloat, true}},
      {{kFloat}, {kCache, true}, {kCache, true}},
      {{3, 1}, {4, 2}},
  };
  return declaration;
}

template class PagedAttention<float>;
template class PagedAttention<int8_t>;

}  // namespace kvfold
