// Session: the agent's stream to the coordinator: who this node is, then how its workloads
// are, every heartbeat and at every event; orders come back. Connected again for ever with
// backoff; workloads run on meanwhile.
// Threads: one that writes and one that reads.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "agent/node/node.h"
#include "transport/identity.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace baton::node {

class Session {
 public:
  Session(Node& node, std::string coordinator_address, const transport::TlsFiles& tls);
  ~Session();

 private:
  void loop();
  void run_once();

  Node& node_;
  const std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  grpc::ClientContext* context_ = nullptr;  // of the stream under way
  std::thread thread_;
};

}  // namespace baton::node
