// write_core: one process of a checkpoint as an ELF core file that gdb opens: its threads with
// their registers, its mappings and its memory (core(5), elf(5); Linux fs/binfmt_elf.c for the
// order of the notes).
//
// What is only mapped from a file and was not changed is left to the file, as in the kernel's
// own core files. Zero pages and absent ones are holes.
// Refuses programs of another architecture than x86_64 and processes that are zombies.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/error.h"
#include "storage/catalog.h"

namespace baton::storage {

struct CoreSummary {
  std::int32_t pid = 0;
  std::string command;
  std::uint64_t threads = 0;
  std::uint64_t mappings = 0;
  std::uint64_t pages = 0;       // written
  std::uint64_t file_bytes = 0;  // of the whole file, holes included
};

// `put` gets pieces at rising offsets, each at most 1 MiB; what it is not given is a hole, up
// to `file_bytes`. `pid` as inside the workload; 0: the workload's root.
// Blocks. Fails: kNotFound (checkpoint, process), kUnsupported, kCorrupt, and what `put` says.
Result<CoreSummary> write_core(
    Store& store, const std::string& workload, std::uint64_t seq, std::int32_t pid,
    const std::function<Result<void>(std::uint64_t offset, std::span<const std::byte>)>& put);

}  // namespace baton::storage
