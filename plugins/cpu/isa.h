// Run-time choice of the instruction set. Each op keeps one table of function pointers per Isa and
// reads `active_isa()` at every call; files named *_avx2.cc and *_avx512vnni.cc are compiled with
// their own flags and must keep everything but their table in an anonymous namespace.
#pragma once

// The library is compiled with hidden symbols; this marks what others may call.
#define KVFOLD_EXPORT __attribute__((visibility("default")))

namespace kvfold {

enum class Isa { portable = 0, avx2 = 1, avx512vnni = 2 };
constexpr int kIsaCount = 3;

// The best supported instruction set, or the one forced with kvfold_select_isa.
Isa active_isa();

}  // namespace kvfold

extern "C" {
// "portable avx2 avx512vnni", as far as this CPU and this build have them; best last.
KVFOLD_EXPORT const char* kvfold_supported_isas();
// The name of the active one.
KVFOLD_EXPORT const char* kvfold_active_isa();
// Forces an instruction set for the whole process (tests compare them); returns 0 if not supported.
KVFOLD_EXPORT int kvfold_select_isa(const char* name);
}
