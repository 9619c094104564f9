// Volumes of what is built: filled like memory, mounted when the program is about to run.
#include <algorithm>
#include <filesystem>

#include "agent/backend/linux/restore/construction.h"
#include "base/log.h"

namespace baton::restore {

bool in_volume(const Construction& c, std::string_view path) {
  return std::any_of(c.state.volumes().begin(), c.state.volumes().end(), [&](const auto& one) { return volume::lies_in(one.folder(), path); });
}

Result<void> start_volumes(Construction& c, const std::vector<backend::VolumePlace>& places) {
  for (const auto& volume : c.state.volumes()) {
    const backend::VolumePlace* place = nullptr;
    for (const auto& one : places) {
      if (one.folder == volume.folder()) place = &one;
    }
    if (place == nullptr) return make_error(Code::kUnsupported, "build", "the checkpoint has a volume " + volume.folder() + ", which nobody has made room for here");
    std::error_code failed;
    std::filesystem::create_directories(volume.folder(), failed);
    if (failed) return errno_error(failed.value(), "make the volume's folder", volume.folder());
    const std::string content = std::filesystem::path(place->socket).parent_path().string();
    BATON_ASSIGN(auto server, volume::VolumeClient::start(place->socket, content, "baton:" + volume.folder()));
    c.volumes[volume.object()] = {volume.folder(), std::move(server)};
  }
  return {};
}

Result<void> settle_volumes(Construction& c, bool used) {
  for (auto& [object, volume] : c.volumes) BATON_TRY(volume.server->settle(used));
  return {};
}

void show_volumes(Construction& c) {
  for (auto& [object, volume] : c.volumes) {
    if (auto shown = volume.server->mount(volume.folder, 0); !shown) spdlog::warn("{}: only its program sees it: {}", volume.folder, shown.error().message());
  }
}

Result<void> mount_volumes(Construction& c, pid_t keeper) {
  for (auto& [object, volume] : c.volumes) BATON_TRY(volume.server->mount(volume.folder, keeper));
  return {};
}

}  // namespace baton::restore
