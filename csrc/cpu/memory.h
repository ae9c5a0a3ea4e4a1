// What glibc's malloc does with the large blocks of a training step.
#pragma once

namespace fastres::cpu {

// From here on, freed blocks of up to 32 MiB, and up to 512 MiB at the heap's end, stay with the process: given back,
// each costs the zeroing of its pages when the next step asks for as much. Changes nothing where the environment has
// set malloc's thresholds, or the allocator is not glibc's; returns whether it did.
bool keep_freed_memory();

}  // namespace fastres::cpu
