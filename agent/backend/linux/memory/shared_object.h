// SharedObject: memory or file content that is owned by no single address space: shared
// anonymous memory, a memfd, a SysV segment, a file without a name. Kept by a descriptor of
// our own and read through it, so that what is mapped nowhere is captured too.
//
// write(2) to a memfd and stores from outside the workload escape every write-protection:
// content is compared with what was handed out last.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "agent/backend/backend.h"
#include "agent/backend/linux/memory/content.h"
#include "agent/backend/linux/memory/page_set.h"
#include "base/fd.h"
#include "proto/linux_state.pb.h"

namespace baton::linux_backend {

class SharedObject {
 public:
  SharedObject(std::uint64_t object, pb::MemoryObjectKind kind, std::string name, Fd fd)
      : object_(object), kind_(kind), name_(std::move(name)), fd_(std::move(fd)) {}

  std::uint64_t object() const { return object_; }
  pb::MemoryObjectKind kind() const { return kind_; }
  const std::string& name() const { return name_; }
  std::uint64_t size_bytes() const { return size_; }
  std::uint64_t pages_pending() const { return full_ ? 1 : 0; }

  // Copies what changed while the sink has room. Answers pages taken; pages_pending() != 0
  // when the sink was full.
  Result<std::uint64_t> copy(backend::PageSink& sink);
  // The same for a file that nobody maps to write to it: a glance tells that nothing has changed.
  Result<std::uint64_t> copy_written(backend::PageSink& sink);
  // POSIX shared memory: its name now. Absent: another kind, or it has been unlinked.
  std::optional<pb::NamedMemory> named() const;
  void copy_again(PageRun run);
  Result<void> verify(VerifyReport& report);

  bool seen = false;       // by the capture under way

 private:
  // The stretches that hold data, as pages.
  Result<void> find_data(std::vector<PageRun>& out);

  std::uint64_t object_;
  pb::MemoryObjectKind kind_;
  std::string name_;
  Fd fd_;
  std::uint64_t size_ = 0;
  bool full_ = false;
  bool settled_ = false;   // all of it has been copied, and it was unchanged for a while then
  struct timespec written_ {}, changed_ {};
  PageSet known_;
  ContentMap digests_;
  std::vector<std::byte> buffer_;
};

}  // namespace baton::linux_backend
