// Voter: the coordinator's own vote, the third where there is no third node. It never owns and
// never stands; what it hears of records the coordinator follows.
// Threads: the tenure host's, and one that tells the coordinator.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "base/queue.h"
#include "coordinator/coordinator.h"
#include "tenure/host.h"
#include "transport/identity.h"

namespace baton::coordinator {

class Voter {
 public:
  // Listens on the port above `rpc_listen`'s; its log is in FOLDER/tenure. `core` outlives it.
  // Fails: as tenure::Host::start; kInvalid (there is no port above).
  static Result<std::unique_ptr<Voter>> start(const std::string& rpc_listen, const std::string& folder,
                                              const transport::TlsFiles& tls, Coordinator& core);
  ~Voter();

 private:
  Voter() = default;
  BoundedQueue<pb::TenureRecord> heard_{4096};
  std::unique_ptr<tenure::Host> host_;
  std::atomic<bool> ending_{false};
  std::thread follower_;
};

}  // namespace baton::coordinator
