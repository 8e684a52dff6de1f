#include "cuda/cpp/node/attention_spec.h"

#include <map>

namespace kvfold::cuda {

std::string variant_name(const std::string& kernel, const AttentionSpec& spec) {
  std::map<std::string, int64_t> constants = {{"head_size", spec.head_size}};  // in alphabetical order
  if (kernel == "append") {
    constants["rotary"] = spec.attributes.do_rotary;
    constants["qk_norm"] = spec.qk_norm;
    constants["writes"] = spec.writes;
  } else if (kernel == "prefill" || kernel == "decode") {
    constants["page_size"] = spec.page_size;
    constants["group_size"] = spec.group_size();
    constants["softcap"] = spec.attributes.softcap > 0;
  }
  // Decoding meets the head sink when its splits are merged.
  if (kernel == "prefill" || kernel == "merge") constants["head_sink"] = spec.head_sink;
  std::string name = kernel + "-" + spec.activation_dtype + "-" + spec.cache_dtype;
  for (const auto& [constant, value] : constants) name += "-" + constant + std::to_string(value);
  return name;
}

}  // namespace kvfold::cuda
