// MemoryMap: a checkpoint's mappings, from its manifest: which page of which memory object
// belongs to which mapping of which process. For those who explain memory to a person
// (analysis.h, comparison.h, core_file.h); the store itself never looks into a manifest.
//
// A manifest of another backend than "linux" gives a map without mappings: its pages are then
// told by their object's name alone.
// Threads: immutable after parse.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "proto/checkpoint.pb.h"
#include "proto/linux_state.pb.h"

namespace baton::storage {

enum class MemoryKind : std::uint8_t { kHeap, kStack, kAnonymous, kPrivateFile, kShared, kVolume, kOther };
std::string_view memory_kind_name(MemoryKind kind);

struct MappingView {
  std::int32_t pid = 0;  // inside the workload
  std::uint64_t start = 0, end = 0;
  std::uint32_t prot = 0;
  MemoryKind kind = MemoryKind::kOther;
  std::string name;  // the file's path, [heap], memfd:x, …; "anonymous" without one
  std::uint64_t object = 0;      // whose pages it shows; 0: no object of the checkpoint
  std::uint64_t first_page = 0;  // of `object`, at `start`
  const pb::Mapping* mapping = nullptr;

  std::uint64_t page_count() const { return (end - start) / 4096; }
  bool shows(std::uint64_t page) const {
    return page >= first_page && page - first_page < page_count();
  }
  std::uint64_t address_of(std::uint64_t page) const { return start + (page - first_page) * 4096; }
};

class MemoryMap {
 public:
  // Fails: kCorrupt (the manifest does not parse).
  static Result<MemoryMap> parse(const std::string& manifest);

  const pb::Manifest& manifest() const { return manifest_; }
  const pb::LinuxState& state() const { return state_; }
  const std::vector<MappingView>& mappings() const { return mappings_; }  // by process, then address
  // The mapping that shows this page, of several the first; null: none does.
  const MappingView* find(std::uint64_t object, std::uint64_t page) const;
  // For a person: "pid 7", "memfd:x", "object 12".
  std::string object_name(std::uint64_t object) const;
  MemoryKind object_kind(std::uint64_t object) const;   // of pages that no mapping shows
  const pb::ProcessState* process(std::int32_t pid) const;

 private:
  MemoryMap() = default;
  void add_process(const pb::ProcessState& process);

  pb::Manifest manifest_;
  pb::LinuxState state_;
  std::vector<MappingView> mappings_;
  std::map<std::uint64_t, std::vector<std::size_t>> by_object_;  // rising first_page
};

// "r-xp" as in /proc/PID/maps.
std::string rights_text(const pb::Mapping& mapping);

}  // namespace baton::storage
