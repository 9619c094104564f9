// WardenClient: the agent's side of its node's warden. Blocking calls, many
// threads at once; answers arrive on one reader thread. When the warden dies,
// every call under way fails with kUnreachable and `on_lost` is called once;
// connect again to a restarted warden, whose workloads run on meanwhile.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "proto/warden.pb.h"

namespace baton::warden {

// Captured pages in the shared capture buffer, given back on destruction.
// Keep it no longer than needed: the buffer is bounded.
class CapturedPages {
 public:
  CapturedPages();
  CapturedPages(CapturedPages&&) noexcept;
  CapturedPages& operator=(CapturedPages&&) noexcept;
  ~CapturedPages();
  const std::vector<pb::PageRun>& runs() const;
  const std::byte* data(const pb::PageRun& run) const;   // run.count() * 4096 bytes
  struct Impl;
  explicit CapturedPages(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

struct Round {
  pb::RoundResponse info;
  CapturedPages pages;
};
struct Capture {
  pb::CaptureResponse info;
  CapturedPages pages;
};

// A piece of the shared fill buffer (agent to warden), given back on destruction.
class FillSpace {
 public:
  FillSpace();
  FillSpace(FillSpace&&) noexcept;
  FillSpace& operator=(FillSpace&&) noexcept;
  ~FillSpace();
  std::span<std::byte> bytes() const;
  std::uint64_t offset() const;
  struct Impl;
  explicit FillSpace(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

class WardenClient {
 public:
  using EventHandler = std::function<void(const pb::WardenEvent&)>;
  static Result<std::unique_ptr<WardenClient>> connect(const std::string& socket_path,
                                                       EventHandler on_event,
                                                       std::function<void()> on_lost);
  ~WardenClient();

  Result<pb::NodeFacts> probe();
  Result<pb::InspectResponse> inspect(const pb::InspectRequest& request);
  Result<pb::WorkloadProcess> run(const pb::WorkloadSpec& spec);
  Result<pb::WorkloadProcess> protect(const pb::WorkloadSpec& spec);
  Result<std::vector<pb::WorkloadProcess>> list();
  Result<Round> round(const pb::RoundRequest& request);
  Result<Capture> capture(const pb::CaptureRequest& request);
  Result<void> thaw(const std::string& workload);
  Result<pb::ExecResponse> exec(const pb::ExecRequest& request);
  Result<void> release_output(const std::string& workload, std::uint64_t epoch);   // output commit
  Result<void> hold(const std::string& workload);        // freeze by cgroup, survives any death
  Result<void> stop(const pb::StopRequest& request);
  Result<void> release(const std::string& workload);
  Result<void> build(const pb::BuildRequest& request);
  Result<FillSpace> fill_space(std::size_t bytes);       // blocks until the buffer has room
  Result<void> fill(const pb::FillRequest& request);     // answered when copied
  Result<pb::ShadowResponse> shadow(const pb::ShadowRequest& request);
  Result<pb::WorkloadProcess> activate(const pb::ActivateRequest& request);
  Result<pb::LogsResponse> logs(const pb::LogsRequest& request);
  Result<pb::ProveFilesResponse> prove_files(const pb::ProveFilesRequest& request);
  Result<pb::ReadFileResponse> read_file(const pb::ReadFileRequest& request);
  Result<void> write_file(const pb::WriteFileRequest& request);
  Result<void> signal(const std::string& workload, int signal);
  Result<void> prefer_thread(pid_t tid);   // of this process
  // As LeaseRequest says. Fails: kConflict, kNotFound; kTimedOut after half a second.
  Result<pb::LeaseResponse> lease(const pb::LeaseRequest& request);

  struct Impl;
  explicit WardenClient(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::warden
