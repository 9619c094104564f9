// All standbys of a node, and its memory shared among them.
#include <unistd.h>

#include <filesystem>

#include "agent/node/standby.h"
#include "base/fd.h"
#include "base/log.h"

namespace baton::node {
namespace {
constexpr std::string_view kSuffix = ".standby";
}  // namespace

Standbys::Standbys(StandbyEnv env, std::string folder, std::uint64_t budget_bytes)
    : env_(std::move(env)), folder_(std::move(folder)), budget_bytes_(budget_bytes) {
  env_.one_build = &one_build_;
}

Standbys::~Standbys() {
  std::map<std::string, std::shared_ptr<Standby>> gone;
  {
    std::lock_guard lock(mutex_);
    gone.swap(all_);
  }
  for (auto& [name, standby] : gone) standby->retire();
}

std::string Standbys::path(const std::string& name) const { return folder_ + "/" + name + std::string(kSuffix); }

void Standbys::load(const std::set<std::string>& running) {
  std::error_code error;
  std::vector<std::pair<std::string, pb::WorkloadSpec>> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error)) {
    if (entry.path().extension() != kSuffix) continue;
    const std::string name = entry.path().stem();
    auto bytes = read_file(entry.path(), 1u << 20);
    pb::WorkloadSpec spec;
    auto tip = env_.store->tip(name);
    if (!bytes || !spec.ParseFromString(*bytes) || spec.name() != name || !tip || !*tip || running.contains(name)) {
      ::unlink(entry.path().c_str());
      continue;
    }
    found.emplace_back(name, std::move(spec));
  }
  for (auto& [name, spec] : found) (void)open(name, spec);
}

std::shared_ptr<Standby> Standbys::open(const std::string& name, const pb::WorkloadSpec& spec) {
  std::shared_ptr<Standby> standby;
  bool fresh = false;
  {
    std::lock_guard lock(mutex_);
    if (barred_.contains(name)) return nullptr;
    auto& slot = all_[name];
    if (!slot) {
      fresh = true;
      slot = std::make_shared<Standby>(env_, name, spec, [this] { share(); });
    }
    standby = slot;
  }
  if (!fresh) standby->set_spec(spec);
  const std::string bytes = spec.SerializeAsString();
  auto held = read_file(path(name), 1u << 20);
  if (!held || *held != bytes) {
    if (auto saved = replace_file(path(name), bytes); !saved) spdlog::warn("{}: {}", name, saved.error().message());
  }
  share();
  return standby;
}

std::shared_ptr<Standby> Standbys::find(const std::string& name) const {
  std::lock_guard lock(mutex_);
  auto it = all_.find(name);
  return it == all_.end() ? nullptr : it->second;
}

std::map<std::string, StandbyView> Standbys::views() const {
  std::map<std::string, std::shared_ptr<Standby>> all;
  {
    std::lock_guard lock(mutex_);
    all = all_;
  }
  std::map<std::string, StandbyView> out;
  for (const auto& [name, standby] : all) out[name] = standby->view();
  return out;
}

void Standbys::remove(const std::string& name, bool barred) {
  std::shared_ptr<Standby> gone;
  {
    std::lock_guard lock(mutex_);
    if (barred) barred_.insert(name);
    if (auto it = all_.find(name); it != all_.end()) {
      gone = std::move(it->second);
      all_.erase(it);
    }
  }
  ::unlink(path(name).c_str());
  if (!gone) return;
  gone->retire();
  share();
}

void Standbys::allow(const std::string& name) {
  std::lock_guard lock(mutex_);
  barred_.erase(name);
}

void Standbys::wake_all() {
  std::lock_guard lock(mutex_);
  for (auto& [name, standby] : all_) standby->wake();
}

void Standbys::share() {
  std::lock_guard one(share_mutex_);
  std::vector<std::shared_ptr<Standby>> now;
  {
    std::lock_guard lock(mutex_);
    for (auto& [name, standby] : all_) now.push_back(standby);
  }
  std::vector<StandbyClaim> claims;
  for (const auto& standby : now) claims.push_back(standby->claim());
  auto grants = share_memory(claims, budget_bytes_);
  for (std::size_t i = 0; i < now.size(); ++i) now[i]->grant(grants[claims[i].name]);
}

}  // namespace baton::node
