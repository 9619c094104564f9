// The capture buffer: bounded memory shared with the agent, handed out in segments.
//
// Captures write into it through a CaptureSink (one per workload). A page is first in use
// by its sink's request, then, with the answer, given to the agent, which frees it; a
// segment goes back to the pool once it is full and all its pages are free, and beyond a
// small hot reserve its memory goes back to the kernel. Freeing twice, or what was never
// given, is refused: the agent's word is not trusted.
//
// Threads: CaptureBuffer is locked inside. A CaptureSink belongs to one thread; only its
// abort flag may be set by another.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "agent/backend/backend.h"
#include "agent/warden/shared_memory.h"
#include "proto/warden.pb.h"

namespace baton::warden {

inline constexpr std::size_t kSegmentBytes = 1u << 20;
inline constexpr std::size_t kHotSegments = 64;      // kept backed by memory for the next captures

class CaptureBuffer {
 public:
  static Result<std::unique_ptr<CaptureBuffer>> make(std::size_t bytes);

  std::size_t size() const { return memory_.bytes().size(); }
  Result<Fd> open_read_only() const { return memory_.open_read_only(); }

  using Runs = google::protobuf::RepeatedPtrField<pb::PageRun>;
  void give(const Runs& runs);              // taken from a sink, on their way to the agent
  void take_back(const Runs& runs);         // taken from a sink, but the answer cannot be sent
  // The agent gives pages back. Fails with kInvalid at the first run not entirely given to it.
  Result<void> free_runs(const Runs& runs_untrusted);
  // The agent has gone: everything that was given is free.
  void free_all_given();
  // Gives the hot reserve back to the kernel.
  void trim();

  std::size_t free_segments() const;
  std::size_t pages_used() const;

 private:
  friend class CaptureSink;
  struct Segment {
    std::uint32_t used = 0;   // pages in use by a sink or given to the agent
    bool open = false;        // a sink writes to it
    bool free = true;
    bool backed = false;      // has memory
  };
  explicit CaptureBuffer(SharedMemory memory);
  int take_segment();                            // -1: none free
  void close_segment(int index);
  void mark_used(std::uint64_t first_page, std::uint64_t count);
  void unmark(std::uint64_t first_page, std::uint64_t count);   // lock held
  void release_if_done(std::size_t index);       // lock held

  SharedMemory memory_;
  mutable std::mutex mutex_;
  std::vector<Segment> segments_;
  std::vector<int> free_hot_, free_cold_;
  std::vector<bool> used_, given_;               // per page of the buffer
  std::size_t used_count_ = 0;
};

// Collects what one request captures. Later pages replace earlier ones of the same request,
// and a drop takes away what came before it, so that the answer's drops apply before its runs.
class CaptureSink final : public backend::PageSink {
 public:
  explicit CaptureSink(CaptureBuffer& buffer) : buffer_(buffer) {}
  ~CaptureSink() override;
  CaptureSink(const CaptureSink&) = delete;
  CaptureSink& operator=(const CaptureSink&) = delete;

  std::span<std::byte> reserve(std::size_t bytes) override;
  void emit(std::uint64_t object, std::uint64_t first_page, std::uint32_t count) override;
  void drop(std::uint64_t object, std::uint64_t first_page, std::uint64_t count) override;
  std::size_t free_bytes() const override;

  // Before each request: what it may take at most (0: all that is free), and the fault point
  // to pass at its first reserve (an injected error there looks like a full buffer).
  void begin(std::size_t max_bytes, const char* fault_name = nullptr);
  // From now on reserve finds no room; the backend then ends what it does. Any thread.
  void abort() { aborted_.store(true, std::memory_order_relaxed); }
  bool aborted() const { return aborted_.load(std::memory_order_relaxed); }

  // What was collected since the last take, as the answer has it. The runs stay in use until
  // they are given or taken back.
  void take(google::protobuf::RepeatedPtrField<pb::PageRun>* runs,
            google::protobuf::RepeatedPtrField<pb::PageRange>* dropped);
  // Frees what was collected and not taken.
  void discard();

 private:
  struct Event {
    std::uint64_t object, first_page, count;
    std::uint64_t at;        // byte offset in the buffer
    bool is_drop;
  };
  CaptureBuffer& buffer_;
  std::vector<Event> events_;
  int segment_ = -1;
  std::size_t used_ = 0;          // bytes of the open segment in use
  std::size_t reserved_ = 0;
  std::size_t taken_ = 0, limit_ = 0;
  const char* fault_name_ = nullptr;
  std::atomic<bool> aborted_{false};
};

}  // namespace baton::warden
