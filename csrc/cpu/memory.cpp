#include "memory.h"

#include <cstdlib>
#include <initializer_list>
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace fastres::cpu {

// Left alone, glibc raises its threshold to the size of the largest block freed so far, and maps the next one of that
// very size all the same (mallopt(3), M_MMAP_THRESHOLD): in a network the largest are all of one size.
bool keep_freed_memory() {
#ifdef __GLIBC__
  for (const char* name : {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}) {
    if (std::getenv(name)) return false;
  }
  return mallopt(M_MMAP_THRESHOLD, 32 << 20) && mallopt(M_TRIM_THRESHOLD, 512 << 20);
#else
  return false;
#endif
}

}  // namespace fastres::cpu
