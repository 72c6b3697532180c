// Work shared out over the calling thread and helpers of its own; compiled once, for all levels.
#pragma once

#include <stdint.h>

namespace millstream {

// Computes a chunk.
typedef void (*ChunkRun)(const void* body, int64_t chunk);

// Threads that the calling thread's regions take, itself among them; 1 until it has been set.
int64_t thread_count();
void set_thread_count(int64_t count);
static const int64_t MOST_THREADS = 4096;

// Calls run(body, chunk) once for each of 0 .. chunks, fewer than 2^32, at most `threads` at the same time; returns
// when all have been computed.
//
// Each thread has chunks of its own, neighbours, and when they are done it takes half of what another one has
// left. A helper that has no core when the region opens has no part in it, and one that loses its core on the way
// keeps from the others the chunk that it computes, and no more.
void run_chunks(int64_t chunks, int64_t threads, ChunkRun run, const void* body);

}  // namespace millstream
