// HealthCheck: asks a program beside which it stands whether it works: a command inside the
// workload, a connection to it, a request to it. What a failed check means is its owner's to say.
//
// Threads: one of its own; `unhealthy` is called there, once, after which it asks no more.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "agent/node/warden.h"
#include "proto/workload.pb.h"

namespace baton::node {

class HealthCheck {
 public:
  // Asks from after the grace period on. `why`: the last failure.
  HealthCheck(Warden& warden, std::string workload, pb::HealthCheck check, std::function<void(const std::string& why)> unhealthy);
  ~HealthCheck();
  std::string state() const;   // healthy, failing: WHY, unknown

 private:
  void loop();
  Result<void> ask();
  Warden& warden_;
  const std::string workload_;
  const pb::HealthCheck check_;
  const std::function<void(const std::string&)> unhealthy_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::string state_ = "unknown";
  bool stopping_ = false;
  std::thread thread_;
};

// One connection to ADDRESS:PORT; with `path`, one HTTP/1.1 request. Answered within `timeout`.
// Fails: kUnreachable, kTimedOut, kInvalid, kFailed (another answer than 200 to 399).
Result<void> ask_tcp(const std::string& address, std::chrono::milliseconds timeout);
Result<void> ask_http(const std::string& url, std::chrono::milliseconds timeout);

}  // namespace baton::node
