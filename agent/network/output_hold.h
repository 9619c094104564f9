// OutputHold: output commit. Everything that a workload sends is kept until the checkpoint that
// contains its cause is committed, then sent in order; TCP connections then survive a failover
// with nothing acknowledged missing. Loopback inside the workload is not held, nor are ARP and
// neighbour discovery, which say nothing about the program.
//
// Between the workload's eth0 and the switch stand two more pairs: eth0 = bo-X, bi-X = bt-X.
// What arrives goes from bi-X to bo-X in the kernel. What leaves is dropped there, and a packet
// socket on bo-X has a copy, which goes into bi-X when its time has come, and so through the
// egress gate like everything else. Not chosen: a queue of netfilter in the workload's
// namespace (NFQUEUE): a program with CAP_NET_ADMIN could remove it, packet sockets pass it by,
// and what waits there counts against the sender's small queue, which stops it from filling its
// window. When this process ends, nothing leaves any more; what was kept is lost, as on any
// network.
//
// Epochs: a frame belongs to the epoch in which it was taken in; mark() ends one, at the freeze,
// and its number names the checkpoint under way. A frame that the kernel hands over late
// belongs to a later epoch than it could: it waits longer, never too short.
//
// Threads: one of its own takes in; all functions from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace baton::network {

inline constexpr std::size_t kHeldBytesMax = 64u << 20;   // of one workload; what comes then is lost

class OutputHold {
 public:
  // `from`: bo-X, `into`: bi-X. `waits`: called, from its own thread, when a frame is the first of
  // an epoch: a checkpoint is wanted.
  static Result<std::unique_ptr<OutputHold>> start(int from, int into, std::function<void()> waits);
  ~OutputHold();
  OutputHold(const OutputHold&) = delete;
  OutputHold& operator=(const OutputHold&) = delete;

  std::uint64_t mark();                    // the epoch that ends now; from 1
  void release(std::uint64_t epoch);       // everything of this epoch and earlier ones goes out

  struct Stats { std::uint64_t held = 0, held_bytes = 0, sent = 0, lost = 0; };
  Stats stats() const;

 private:
  struct Frame { std::uint64_t epoch = 0; std::vector<std::byte> bytes; };
  OutputHold(Fd tap, Fd wake, int into, std::function<void()> waits);
  void run();
  bool take_in();                          // under mutex_; whether a frame was the first of its epoch
  void send(std::span<const std::byte> frame);

  Fd tap_, wake_;
  const int into_;
  const std::function<void()> waits_;
  mutable std::mutex mutex_;
  std::deque<Frame> frames_;
  std::vector<std::byte> buffer_;
  std::uint64_t epoch_ = 1;
  bool told_ = false;                      // that this epoch has a frame
  Stats stats_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace baton::network
