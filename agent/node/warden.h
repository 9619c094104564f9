// Warden: what the agent needs of its node's warden, as an abstract interface, so that
// everything above it is tested with a workload in memory. WardenLink (warden_link.h) is
// the real one. All calls block and may be made from any thread.
//
// Fails everywhere with kUnreachable when the warden is not there (it is being restarted);
// workloads run on meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "proto/warden.pb.h"

namespace baton::node {

// Captured pages in a bounded buffer, given back on destruction.
class CapturedBatch {
 public:
  virtual ~CapturedBatch() = default;
  virtual const std::vector<pb::PageRun>& runs() const = 0;
  virtual const std::byte* data(const pb::PageRun& run) const = 0;  // run.count() pages
};

struct Round {
  pb::RoundResponse info;
  std::unique_ptr<CapturedBatch> pages;
};
struct Capture {
  pb::CaptureResponse info;
  std::unique_ptr<CapturedBatch> pages;
};

// Room for pages on their way into a workload being built.
class FillBuffer {
 public:
  virtual ~FillBuffer() = default;
  virtual std::span<std::byte> bytes() = 0;
  virtual std::uint64_t offset() const = 0;
};

class Warden {
 public:
  virtual ~Warden() = default;
  // Rises with every connection: what an earlier one tracked, and its object ids, are gone.
  virtual std::uint64_t epoch() const { return 1; }
  virtual Result<pb::NodeFacts> probe() = 0;
  virtual Result<pb::InspectResponse> inspect(const pb::InspectRequest& request) = 0;
  virtual Result<pb::WorkloadProcess> run(const pb::WorkloadSpec& spec) = 0;
  virtual Result<pb::WorkloadProcess> protect(const pb::WorkloadSpec& spec) = 0;
  virtual Result<std::vector<pb::WorkloadProcess>> list() = 0;
  virtual Result<Round> round(const pb::RoundRequest& request) = 0;
  virtual Result<Capture> capture(const pb::CaptureRequest& request) = 0;
  // The right to run until then (LeaseRequest). True: it was frozen for want of one, and goes on.
  virtual Result<bool> lease(const pb::LeaseRequest& /*request*/) {
    return make_error(Code::kUnsupported, "lease", "this warden gives none");
  }
  // Real-time priority for a thread of this process.
  virtual Result<void> prefer_thread(pid_t /*tid*/) { return {}; }
  // Runs a command inside the workload (a health check).
  virtual Result<pb::ExecResponse> exec(const pb::ExecRequest& /*request*/) {
    return make_error(Code::kUnsupported, "exec", "this warden runs none");
  }
  // Output commit: what the workload sent up to this capture's freeze goes out.
  virtual Result<void> release_output(const std::string& workload, std::uint64_t epoch) = 0;
  virtual Result<void> thaw(const std::string& workload) = 0;
  virtual Result<void> hold(const std::string& workload) = 0;
  virtual Result<void> stop(const std::string& workload, std::uint64_t grace_us, bool kill) = 0;
  virtual Result<void> release(const std::string& workload) = 0;
  virtual Result<void> build(const pb::BuildRequest& request) = 0;
  virtual Result<std::unique_ptr<FillBuffer>> fill_space(std::size_t bytes) = 0;
  virtual Result<void> fill(const pb::FillRequest& request) = 0;
  // Keeps what was built with BuildRequest.seq up to date (proto/shadow.proto). Fails:
  // kNotFound (there is none); after any other failure there is none either.
  virtual Result<pb::ShadowResponse> shadow(const pb::ShadowRequest& /*request*/) {
    return make_error(Code::kUnsupported, "shadow", "this warden has none");
  }
  virtual Result<pb::WorkloadProcess> activate(const pb::ActivateRequest& request) = 0;
  virtual Result<pb::LogsResponse> logs(const pb::LogsRequest& request) = 0;
  virtual Result<pb::ProveFilesResponse> prove_files(const pb::ProveFilesRequest& request) = 0;
  virtual Result<pb::ReadFileResponse> read_file(const pb::ReadFileRequest& request) = 0;
  virtual Result<void> write_file(const pb::WriteFileRequest& request) = 0;
};

}  // namespace baton::node
