// StreamReplica: a standby as a Replica, over a page stream connection of its own, so that
// its rate limit, its counters and its failures are this workload's alone.
// close() may be called from any thread and wakes the others.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "agent/node/replica.h"
#include "proto/agent.pb.h"
#include "transport/page_stream.h"

namespace baton::node {

class StreamReplica final : public Replica {
 public:
  StreamReplica(pb::PeerAddress peer, storage::WorkloadIdentity identity, std::string context,
                std::uint8_t durability, const transport::TlsFiles& tls);
  ~StreamReplica() override;
  std::string name() const override { return "standby " + peer_.node(); }
  Result<std::optional<ReplicaTip>> open(std::uint64_t incarnation) override;
  void close() override;
  Result<std::vector<bool>> have(std::span<const dedup::Digest> digests) override;
  Result<std::uint64_t> put(std::span<const storage::PagePut> pages) override;
  Result<void> commit(const storage::CheckpointRecord& record, storage::Durability durability,
                      std::vector<dedup::Digest>* missing) override;
  void limit_rate(std::uint64_t bytes_per_s) override;

 private:
  using Answer = tl::expected<transport::AckInfo, transport::Nack>;
  std::shared_ptr<transport::PageStreamChannel> channel() const;
  void answered(std::uint64_t seq, const Answer& answer);

  const pb::PeerAddress peer_;
  const storage::WorkloadIdentity identity_;
  const std::string context_;
  const std::uint8_t durability_;
  const transport::TlsFiles& tls_;
  std::uint64_t rate_ = 0;
  std::uint64_t counted_bytes_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<transport::PageStreamConnection> connection_;
  std::shared_ptr<transport::PageStreamChannel> channel_;
  std::uint64_t awaited_seq_ = 0;
  std::optional<Answer> answer_;
  bool closed_ = false;
};

}  // namespace baton::node
