// Stands in for the CUDA toolkit's header of this name: the two types that TensorRT's headers take from it.
// So the library is built, and loads, without the toolkit.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
