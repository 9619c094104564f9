#include "storage/memory_map.h"

#include <sys/mman.h>

#include <algorithm>
#include <set>

namespace baton::storage {
namespace {

MemoryKind kind_of(const pb::Mapping& mapping) {
  switch (mapping.kind()) {
    case pb::MAPPING_ANONYMOUS:
      if (mapping.name() == "[heap]") return MemoryKind::kHeap;
      if (mapping.name().starts_with("[stack")) return MemoryKind::kStack;
      return MemoryKind::kAnonymous;
    case pb::MAPPING_FILE_PRIVATE:
      return MemoryKind::kPrivateFile;
    case pb::MAPPING_SHARED:
      return MemoryKind::kShared;
    default:
      return MemoryKind::kOther;
  }
}

std::string name_of(const pb::Mapping& mapping) {
  if (!mapping.path().empty()) return mapping.path();
  if (!mapping.name().empty()) return mapping.name();
  return mapping.kind() == pb::MAPPING_SHARED ? "shared anonymous" : "anonymous";
}

}  // namespace

std::string_view memory_kind_name(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kHeap: return "heap";
    case MemoryKind::kStack: return "stack";
    case MemoryKind::kAnonymous: return "anonymous";
    case MemoryKind::kPrivateFile: return "private file";
    case MemoryKind::kShared: return "shared";
    case MemoryKind::kVolume: return "volume";
    case MemoryKind::kOther: return "other";
  }
  return "other";
}

Result<MemoryMap> MemoryMap::parse(const std::string& manifest) {
  MemoryMap map;
  if (!map.manifest_.ParseFromString(manifest)) {
    return make_error(Code::kCorrupt, "read manifest", "it does not parse");
  }
  if (map.manifest_.backend() == "linux" &&
      !map.state_.ParseFromString(map.manifest_.state())) {
    return make_error(Code::kCorrupt, "read manifest", "its process state does not parse");
  }
  for (const auto& process : map.state_.processes()) map.add_process(process);
  for (std::size_t i = 0; i < map.mappings_.size(); ++i) {
    if (map.mappings_[i].object != 0) map.by_object_[map.mappings_[i].object].push_back(i);
  }
  for (auto& [object, list] : map.by_object_) {
    std::stable_sort(list.begin(), list.end(), [&](std::size_t a, std::size_t b) {
      return map.mappings_[a].first_page < map.mappings_[b].first_page;
    });
  }
  return map;
}

void MemoryMap::add_process(const pb::ProcessState& process) {
  if (process.shares_memory_with() != 0) return;  // the other one's list is the same
  for (const auto& mapping : process.mappings()) {
    if (mapping.end() <= mapping.start() || mapping.start() % 4096 != 0) continue;
    MappingView view;
    view.pid = process.pid();
    view.start = mapping.start();
    view.end = mapping.end();
    view.prot = mapping.prot();
    view.kind = kind_of(mapping);
    view.name = name_of(mapping);
    view.mapping = &mapping;
    if (mapping.kind() == pb::MAPPING_ANONYMOUS || mapping.kind() == pb::MAPPING_FILE_PRIVATE) {
      view.object = process.memory_object();
      view.first_page = mapping.start() / 4096;
    } else if (mapping.kind() == pb::MAPPING_SHARED) {
      view.object = mapping.object();
      view.first_page = mapping.offset() / 4096;
    }
    mappings_.push_back(std::move(view));
  }
}

const MappingView* MemoryMap::find(std::uint64_t object, std::uint64_t page) const {
  auto list = by_object_.find(object);
  if (list == by_object_.end()) return nullptr;
  // Mappings of one address space do not overlap; those of a shared object may, and are few.
  auto after = std::upper_bound(
      list->second.begin(), list->second.end(), page,
      [&](std::uint64_t p, std::size_t i) { return p < mappings_[i].first_page; });
  const MappingView* found = nullptr;
  while (after != list->second.begin()) {
    const MappingView& view = mappings_[*--after];
    if (view.shows(page)) found = &view;
    if (found && view.kind != MemoryKind::kShared) break;
    if (!found && view.kind != MemoryKind::kShared) break;
  }
  return found;
}

std::string MemoryMap::object_name(std::uint64_t object) const {
  for (const auto& one : manifest_.objects()) {
    if (one.id() == object && !one.name().empty()) return one.name();
  }
  return "object " + std::to_string(object);
}

MemoryKind MemoryMap::object_kind(std::uint64_t object) const {
  for (const auto& one : manifest_.objects()) {
    if (one.id() == object && one.kind() == pb::MEMORY_OBJECT_VOLUME) return MemoryKind::kVolume;
  }
  return MemoryKind::kOther;
}

const pb::ProcessState* MemoryMap::process(std::int32_t pid) const {
  for (const auto& process : state_.processes()) {
    if (process.pid() == pid) return &process;
  }
  return nullptr;
}

std::string rights_text(const pb::Mapping& mapping) {
  std::string out = "---p";
  if (mapping.prot() & PROT_READ) out[0] = 'r';
  if (mapping.prot() & PROT_WRITE) out[1] = 'w';
  if (mapping.prot() & PROT_EXEC) out[2] = 'x';
  if (mapping.flags() & MAP_SHARED) out[3] = 's';
  return out;
}

}  // namespace baton::storage
