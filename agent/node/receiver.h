// Receiver: the standby's side of the page stream, over this node's store. Refuses records
// and openings of an older incarnation than it has seen, and of workloads whose primary is
// this node itself. Threads: called by the stream's workers, several at once.
#pragma once

#include <functional>
#include <string>

#include "agent/node/standby.h"
#include "proto/workload.pb.h"
#include "storage/catalog.h"
#include "transport/page_stream.h"

namespace baton::node {

class Receiver final : public transport::StreamHandler {
 public:
  // `runs_here(name)`: the incarnation at which the workload runs on this node; 0: it does not.
  // `standbys` (null in tests): what is kept ready of the workloads received here.
  Receiver(storage::Store& store, std::function<std::uint64_t(const std::string&)> runs_here,
           Standbys* standbys = nullptr)
      : store_(store), runs_here_(std::move(runs_here)), standbys_(standbys) {}
  // Told of each commit before it is acknowledged. Before anything is received.
  using Committed = std::function<void(const std::string& workload, std::uint64_t incarnation, std::uint64_t seq)>;
  void on_committed(Committed committed) { committed_ = std::move(committed); }
  // Whether somebody else than `node` owns the workload under a newer record, or this node has voted for
  // somebody else. The same.
  using Fenced = std::function<bool(const std::string& workload, std::uint64_t incarnation, const std::string& node)>;
  void on_fence(Fenced fenced) { fenced_ = std::move(fenced); }

  Result<transport::Opened> on_open(const transport::StreamPeer& peer,
                                    const transport::OpenRequest& request) override;
  Result<std::string> on_fetch_checkpoint(const transport::StreamPeer& peer, std::string_view workload,
                                          std::uint64_t seq) override;
  Result<void> on_fetch_pages(const transport::StreamPeer& peer, std::string_view workload,
                              const transport::DomainBytes& domain, dedup::DigestKind kind,
                              std::span<const dedup::Digest> digests, std::span<std::byte> out,
                              std::vector<bool>& present) override;
  void on_stream_error(const Error& error) override;

 private:
  storage::Store& store_;
  const std::function<std::uint64_t(const std::string&)> runs_here_;
  Standbys* const standbys_;
  Committed committed_;
  Fenced fenced_;
};

// The checkpoint as a record without a parent: what a fetch and a pull carry.
storage::CheckpointRecord full_record(const storage::Checkpoint& checkpoint);

}  // namespace baton::node
