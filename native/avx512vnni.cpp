// The backend for x86-64 with AVX512-VNNI.
#include "avx512vnni.h"
#include "backend.h"

BACKEND(avx512vnni, Avx512Vnni)
