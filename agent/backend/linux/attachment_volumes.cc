// Volumes in captures: their servers hand out what changed, like memory that is tracked elsewhere.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

#include "agent/backend/linux/attachment.h"
#include "agent/volume/volume_client.h"

namespace baton::linux_backend {

bool lies_in(const std::string& folder, std::string_view path) {
  return path.starts_with(folder) && (path.size() == folder.size() || path[folder.size()] == '/');
}

Result<void> LinuxAttachment::open_volumes() {
  for (const auto& place : target_.volumes) {
    BATON_ASSIGN(auto server, volume::VolumeClient::connect(place.socket));
    volumes_.push_back({place.folder, next_object_++, std::move(server)});
  }
  return {};
}

bool LinuxAttachment::in_volume(std::string_view path) const {
  for (const auto& volume : volumes_) {
    if (lies_in(volume.folder, path)) return true;
  }
  return false;
}

Result<void> LinuxAttachment::copy_volumes(backend::PageSink& sink, backend::RoundStats& stats) {
  for (auto& volume : volumes_) {
    BATON_ASSIGN(const std::uint64_t pages, volume.server->collect(volume.object, sink));
    stats.pages_written += pages;
    stats.pages_copied += pages;
  }
  return {};
}

// Stores through shared mappings are with the kernel: now they go to the server, which is asked next.
Result<void> LinuxAttachment::flush_volume_mappings() {
  if (volumes_.empty()) return {};
  std::set<const AddressSpace*> done;
  std::set<std::uint64_t> flushed;   // by inode
  for (const auto& [pid, process] : processes_) {
    if (!done.insert(process.space.get()).second) continue;
    const MemoryMap& map = process.space->map();
    for (const Vma& v : map.vmas()) {
      if (v.kind != pb::MAPPING_FILE_SHARED && v.kind != pb::MAPPING_FILE_PRIVATE) continue;
      if (v.is_nameless() || !in_volume(map.path(v))) continue;
      if (v.kind == pb::MAPPING_FILE_PRIVATE) {
        return make_error(Code::kUnsupported, "capture memory",
                          "process " + std::to_string(pid) + ": a private mapping of " + std::string(map.path(v)) + ", a file of its volume",
                          "Keep programs and libraries outside the volume.");
      }
      if ((v.prot & PROT_WRITE) == 0 || !flushed.insert(v.inode).second) continue;
      char link[96];
      std::snprintf(link, sizeof link, "/proc/%d/map_files/%llx-%llx", pid, static_cast<unsigned long long>(v.start), static_cast<unsigned long long>(v.end));
      BATON_ASSIGN(Fd fd, open_file(link, O_RDONLY));
      constexpr unsigned kAll = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
      if (::sync_file_range(fd.get(), 0, 0, kAll) != 0) return errno_error("flush a mapping", std::string(map.path(v)));
    }
  }
  return {};
}

void LinuxAttachment::write_volumes(pb::LinuxState& state, pb::Manifest& manifest) const {
  for (const auto& volume : volumes_) {
    auto& out = *state.add_volumes();
    out.set_object(volume.object);
    out.set_folder(volume.folder);
    pb::MemoryObject* object = manifest.add_objects();
    object->set_id(volume.object);
    object->set_kind(pb::MEMORY_OBJECT_VOLUME);
    object->set_name("volume " + volume.folder);
  }
}

}  // namespace baton::linux_backend
