// A wheel runs with the C++ library of glibc 2.28's time. Vectors that GCC 12 compiles call a function that came later
// where a size is beyond all memory; ours takes its place inside of this library.

#include <new>

extern "C" [[noreturn]] __attribute__((visibility("hidden"))) void _ZSt28__throw_bad_array_new_lengthv() {
  throw std::bad_alloc();
}
