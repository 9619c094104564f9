// Replica: one place that holds a workload's checkpoints: a standby behind a page stream
// (stream_replica.h) or this node's own store (local_replica.h). Used by one thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "dedup/digest.h"
#include "storage/catalog.h"
#include "storage/checkpoint_record.h"

namespace baton::node {

struct ReplicaTip {
  std::uint64_t seq = 0;
  std::uint64_t incarnation = 0;
};

class Replica {
 public:
  virtual ~Replica() = default;
  virtual std::string name() const = 0;  // "standby ecu2", "local store"
  // Connects and enters the workload. Answers the newest checkpoint committed there.
  // Fails: kUnreachable, kConflict (an older incarnation than it has seen), kNotAllowed.
  virtual Result<std::optional<ReplicaTip>> open(std::uint64_t incarnation) = 0;
  virtual void close() = 0;
  virtual Result<std::vector<bool>> have(std::span<const dedup::Digest> digests) = 0;
  // Answers the bytes that went out (or onto the disk).
  virtual Result<std::uint64_t> put(std::span<const storage::PagePut> pages) = 0;
  // Blocks until the checkpoint is there at this durability. kNotFound with `missing`
  // filled: it lacks these pages.
  virtual Result<void> commit(const storage::CheckpointRecord& record, storage::Durability durability,
                              std::vector<dedup::Digest>* missing) = 0;
  virtual void limit_rate(std::uint64_t /*bytes_per_s, 0: none*/) {}
};

}  // namespace baton::node
