// WardenLink: the Warden over its local socket, connected again for ever with backoff when
// the warden is restarted.
//
// Threads: one of its own that connects and, after each (re)connection, calls on_connected.
// on_event comes from the client's reader thread and must not call the warden.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "agent/node/warden.h"
#include "agent/warden/client.h"

namespace baton::node {

class WardenLink final : public Warden {
 public:
  WardenLink(std::string socket_path, std::function<void(const pb::WardenEvent&)> on_event,
             std::function<void()> on_connected);
  ~WardenLink() override;
  void start();
  bool connected() const;
  std::uint64_t epoch() const override { return epoch_; }

  Result<pb::NodeFacts> probe() override;
  Result<pb::InspectResponse> inspect(const pb::InspectRequest& request) override;
  Result<pb::WorkloadProcess> run(const pb::WorkloadSpec& spec) override;
  Result<pb::WorkloadProcess> protect(const pb::WorkloadSpec& spec) override;
  Result<std::vector<pb::WorkloadProcess>> list() override;
  Result<Round> round(const pb::RoundRequest& request) override;
  Result<Capture> capture(const pb::CaptureRequest& request) override;
  Result<void> prefer_thread(pid_t tid) override;
  Result<bool> lease(const pb::LeaseRequest& request) override;
  Result<pb::ExecResponse> exec(const pb::ExecRequest& request) override;
  Result<void> release_output(const std::string& workload, std::uint64_t epoch) override;
  Result<void> thaw(const std::string& workload) override;
  Result<void> hold(const std::string& workload) override;
  Result<void> stop(const std::string& workload, std::uint64_t grace_us, bool kill) override;
  Result<void> release(const std::string& workload) override;
  Result<void> build(const pb::BuildRequest& request) override;
  Result<std::unique_ptr<FillBuffer>> fill_space(std::size_t bytes) override;
  Result<void> fill(const pb::FillRequest& request) override;
  Result<pb::ShadowResponse> shadow(const pb::ShadowRequest& request) override;
  Result<pb::WorkloadProcess> activate(const pb::ActivateRequest& request) override;
  Result<pb::LogsResponse> logs(const pb::LogsRequest& request) override;
  Result<pb::ProveFilesResponse> prove_files(const pb::ProveFilesRequest& request) override;
  Result<pb::ReadFileResponse> read_file(const pb::ReadFileRequest& request) override;
  Result<void> write_file(const pb::WriteFileRequest& request) override;

 private:
  using ClientPtr = std::shared_ptr<warden::WardenClient>;
  Result<ClientPtr> client() const;
  void connect_loop();

  const std::string socket_path_;
  const std::function<void(const pb::WardenEvent&)> on_event_;
  const std::function<void()> on_connected_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  ClientPtr client_;
  bool lost_ = false;
  std::atomic<std::uint64_t> epoch_{0};
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace baton::node
