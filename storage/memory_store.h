// MemoryPageStore: pages in memory, uncompressed. For tests, for warm copies and for nodes
// without a disk; kFlushed and kSynced promise nothing more than kMemory does.
// Refuses puts beyond `byte_limit` with kNoSpace (0: no limit).
#pragma once

#include <cstdint>
#include <memory>

#include "storage/page_store.h"

namespace baton::storage {

std::unique_ptr<PageStore> make_memory_store(std::uint64_t byte_limit = 0);

}  // namespace baton::storage
