#include "cuda/cpp/open_kernels.h"

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>

#include "cuda/cpp/text.h"

namespace kvfold::cuda {
namespace {

constexpr const char* kMagic = "kvfold kernels 1\n";
constexpr const char* kVariable = "KVFOLD_KERNELS";
constexpr size_t kDigits = 12;  // enough to tell kernels apart

// Numbers are 32 bits, little-endian; a text is its length and its bytes, a list its length and its entries.
class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}

  std::string take(size_t count) {
    if (count > bytes_.size() - position_) throw KernelError("is cut off");
    position_ += count;
    return bytes_.substr(position_ - count, count);
  }
  uint32_t number() {
    const std::string bytes = take(4);
    uint32_t value = 0;
    for (size_t index = 0; index < 4; ++index) value |= uint32_t{static_cast<unsigned char>(bytes[index])} << 8 * index;
    return value;
  }
  std::string string() { return take(number()); }
  bool at_end() const { return position_ == bytes_.size(); }

 private:
  const std::string& bytes_;
  size_t position_ = 0;
};

CompiledKernel read_kernel(Reader& reader) {
  CompiledKernel kernel;
  kernel.variant = reader.string();
  kernel.architecture = static_cast<int>(reader.number());
  kernel.symbol = reader.string();
  kernel.num_warps = reader.number();
  kernel.shared_bytes = reader.number();
  for (uint32_t left = reader.number(); left > 0; --left) kernel.arguments.push_back(reader.string());
  for (std::string& axis : kernel.grid) axis = reader.string();
  for (uint32_t left = reader.number(); left > 0; --left) {
    const std::string name = reader.string();
    kernel.constants[name] = static_cast<int>(reader.number());
  }
  kernel.cubin = reader.string();
  return kernel;
}

KernelLibrary read_library(const std::string& bytes) {
  Reader reader(bytes);
  if (bytes.rfind(kMagic, 0) != 0) throw KernelError("is no file of kernels that this version reads");
  reader.take(std::strlen(kMagic));
  KernelLibrary library;
  library.sha256 = reader.string();
  for (uint32_t left = reader.number(); left > 0; --left) library.kernels.push_back(read_kernel(reader));
  if (!reader.at_end()) throw KernelError("holds more than its kernels");
  return library;
}

// Every library stays where it is, as launches refer to it.
struct Registry {
  std::mutex mutex;
  std::map<std::string, KernelLibrary> libraries;
  const KernelLibrary* latest = nullptr;
};

Registry& registry() {
  static Registry all;
  return all;
}

void open_from_environment() {
  if (const char* file = std::getenv(kVariable)) open_kernels(file);
}

std::string how_to_open() {
  return text("open the file kernels.bin of its engine with kvfold_open_kernels, or name it in ", kVariable);
}

}  // namespace

KernelLibrary read_kernels(const std::string& file) {
  constexpr const char* kAgain = "; build the engine again with `kvfold build`";
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw KernelError(text(file, " cannot be read (", std::strerror(errno), ")", kAgain));
  const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  try {
    return read_library(bytes);
  } catch (const KernelError& error) {
    throw KernelError(text(file, " ", error.what(), kAgain));
  }
}

const KernelLibrary& open_kernels(const std::string& file) {
  KernelLibrary library = read_kernels(file);
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const std::string sha256 = library.sha256;
  all.latest = &all.libraries.emplace(sha256, std::move(library)).first->second;
  return *all.latest;
}

const KernelLibrary& kernels_of(const std::string& sha256) {
  Registry& all = registry();
  const auto find = [&]() -> const KernelLibrary* {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.libraries.find(sha256);
    return found == all.libraries.end() ? nullptr : &found->second;
  };
  const KernelLibrary* found = find();
  if (found == nullptr) {
    open_from_environment();
    found = find();
  }
  if (found != nullptr) return *found;
  std::vector<std::string> open;
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (const auto& each : all.libraries) open.push_back(each.first.substr(0, kDigits));
  throw KernelError(text("the engine was built with kernels ", sha256.substr(0, kDigits), ", and open are ",
                         open.empty() ? "none" : join(open), "; ", how_to_open()));
}

const KernelLibrary& latest_kernels() {
  const auto latest = [] {
    Registry& all = registry();
    const std::lock_guard<std::mutex> lock(all.mutex);
    return all.latest;
  };
  if (latest() == nullptr) open_from_environment();
  const KernelLibrary* const found = latest();
  if (found == nullptr) throw KernelError("no attention kernels are open; " + how_to_open());
  return *found;
}

}  // namespace kvfold::cuda

// Null, or what is wrong and what to do next: a text that lasts until this thread calls again.
extern "C" __attribute__((visibility("default"))) const char* kvfold_open_kernels(const char* file) {
  thread_local std::string problem;
  try {
    kvfold::cuda::open_kernels(file);
    return nullptr;
  } catch (const std::exception& error) {
    problem = error.what();
    return problem.c_str();
  }
}
