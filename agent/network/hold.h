// Hold: what a freeze does with what arrives for a workload, and with what leaves it. While it
// holds, nothing reaches the workload's sockets (a chain in the workload's network namespace drops
// it), so that what is read of them stays true; the frames themselves are kept by a packet socket
// on the uplink and follow when it ends: to the workload, or, when it has moved meanwhile, to where
// it is now.
//
// And nothing leaves: the kernel goes on sending what is in the queue of a connection, by its
// pacing timer, after the queue has been read. The peer would acknowledge what the moved
// connection has not sent, and the two would never agree again. It is dropped behind the
// workload's interface: for the kernel it is sent and lost, and is sent again if the workload
// stays. With output commit it is kept instead (output_hold.h).
//
// The chains' tables belong to this process (NFT_TABLE_F_OWNER, Linux 5.12): when it ends, the
// kernel removes them, and everything comes and goes again. What was kept is then lost, as on any
// network. At most kKeptBytesMax are kept; more is lost likewise.
//
// Threads: one at a time, together with the port's.
#pragma once

#include <memory>

#include "agent/backend/backend.h"
#include "agent/network/output_hold.h"
#include "agent/network/port.h"

namespace baton::network {

inline constexpr int kKeptBytesMax = 8 << 20;

class Hold final : public backend::NetworkHold {
 public:
  // For a port that is equipped; it must outlive the hold. `output_waits`: see OutputHold, for a
  // workload with output commit.
  static Result<std::unique_ptr<Hold>> make(Port& port, std::function<void()> output_waits = {});
  OutputHold* output() { return output_.get(); }   // null: nothing is held back

  Result<void> hold() override;
  void release() override;
  std::uint64_t mark_output() override { return output_ ? output_->mark() : 0; }
  // Instead of release: the workload runs elsewhere now. Frames kept go there.
  void hand_on();

 private:
  explicit Hold(Port& port) : port_(port) {}
  Result<void> set_up();
  Result<void> listen(bool on);
  std::size_t pass_on(int interface, const Mac* source);

  Port& port_;
  Netlink filter_;          // in the workload's network namespace; owns the table of what arrives
  Netlink leaving_;         // here; owns the table of what leaves
  TableName leaving_table_;
  Fd tap_;                  // on the uplink
  std::unique_ptr<OutputHold> output_;
  bool holding_ = false;
};

}  // namespace baton::network
