// The files that go with a workload: their servers (agent/volume), from the start of the program
// or of a build to their end.
#include <signal.h>
#include <sys/mount.h>
#include <sys/vfs.h>

#include <cerrno>
#include <filesystem>

#include "agent/volume/volume_client.h"
#include "agent/warden/workload.h"
#include "base/log.h"

namespace baton::warden {

Result<std::vector<backend::VolumePlace>> Workload::plan_volumes() const {
  std::vector<backend::VolumePlace> places;
  for (const auto& folder : record_.spec().volumes()) {
    BATON_ASSIGN(std::string socket, around_.records->volume_socket());
    places.push_back({folder, std::move(socket)});
  }
  return places;
}

void Workload::record_volumes(const std::vector<backend::VolumePlace>& places) {
  record_.clear_volumes();
  for (const auto& place : places) {
    auto& out = *record_.add_volumes();
    out.set_folder(place.folder);
    out.set_socket(place.socket);
  }
}

std::vector<backend::VolumePlace> Workload::volumes() const {
  std::vector<backend::VolumePlace> places;
  for (const auto& place : record_.volumes()) places.push_back({place.folder(), place.socket()});
  return places;
}

// Before the program: what the folders hold on this node is what it finds in them.
Result<void> Workload::start_volumes() {
  BATON_ASSIGN(const auto places, plan_volumes());
  record_volumes(places);
  BATON_TRY(around_.records->save(record_));   // first: a restart finds what is to be ended
  for (const auto& place : places) {
    const std::string content = std::filesystem::path(place.socket).parent_path().string();
    BATON_ASSIGN(auto server, volume::VolumeClient::start(place.socket, content, "baton:" + name_));
    BATON_TRY(server->import_folder(place.folder));
    BATON_TRY(server->mount(place.folder, 0));
  }
  return {};
}

// A program whose files have gone with their server cannot go on: it ends, and its spec says what
// follows. Its newest checkpoint has both.
void Workload::judge_volumes(const Error& error) {
  if (error.code != Code::kUnreachable || record_.volumes_size() == 0 || !root_) return;
  attachment_.reset();   // its connection is over
  for (const auto& place : volumes()) {
    if (auto there = volume::VolumeClient::connect(place.socket); there || there.error().code == Code::kTimedOut) continue;
    spdlog::error("{}: the server of its volume {} has ended; the program is ended too", name_, place.folder);
    (void)root_.signal(SIGKILL).has_value();
    return;
  }
}

// Nothing uses them any more. `write_back`: it has run here to its end, and what the program wrote is
// what the folders of this node hold from now on.
void Workload::end_volumes(bool write_back) {
  for (const auto& place : volumes()) {
    auto server = volume::VolumeClient::connect(place.socket);
    if (!server) {
      struct statfs there {};
      if (::statfs(place.folder.c_str(), &there) != 0 && errno == ENOTCONN) ::umount2(place.folder.c_str(), MNT_DETACH);   // it was killed
      if (write_back) spdlog::error("{}: its volume {} is not written back: {}", name_, place.folder, server.error().message());
      continue;
    }
    if (write_back) {
      auto written = (*server)->unmount();
      if (written) written = (*server)->export_folder(place.folder);
      if (!written) {
        spdlog::error("{}: its volume {} is not written back: {}; its newest checkpoint has it", name_, place.folder, written.error().message());
      }
    }
    if (auto ended = (*server)->quit(); !ended) spdlog::warn("{}: volume {}: {}", name_, place.folder, ended.error().message());
  }
  record_.clear_volumes();
}

}  // namespace baton::warden
