#include "cpu/int4_linear/int4_linear_kernel.h"
namespace kvfold { const Int4Kernel int4_kernel_avx2 = {nullptr,nullptr}; }
