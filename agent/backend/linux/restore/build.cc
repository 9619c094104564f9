#include "agent/backend/linux/restore/build.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "agent/backend/linux/restore/construction.h"
#include "agent/backend/linux/state/machine.h"
#include "base/clock.h"

namespace baton::restore {
namespace {

constexpr std::uint64_t kAreaSearchStart = 0x10000000000, kAreaSearchStep = 2u << 20, kAreaSearchEnd = 0x7f0000000000;
constexpr int kMaxNumber = 1 << 20;
constexpr int kShadowNumbers = 1024;      // descriptors that a program may open while a shadow follows it
constexpr int kShadowMakerPid = 30'000;
constexpr std::chrono::milliseconds kMaxClockWait{500};   // to build another takes longer

// An address that is free in every process, with room behind it for a vdso on its way.
Result<std::uint64_t> find_area(const pb::LinuxState& state) {
  for (std::uint64_t at = kAreaSearchStart; at < kAreaSearchEnd; at += kAreaSearchStep) {
    bool free = true;
    for (const auto& p : state.processes()) {
      for (const auto& m : p.mappings()) free = free && (m.end() <= at || m.start() >= at + 3 * kAreaBytes);
      if (!free) break;
    }
    if (free) return at;
  }
  return make_error(Code::kUnsupported, "build", "no free address for the driver");
}

Result<void> check(const pb::Manifest& manifest, const pb::LinuxState& state) {
  if (manifest.backend() != "linux") return make_error(Code::kInvalid, "build", "a checkpoint of the backend " + manifest.backend());
  if (state.version() != 1 || state.processes().empty()) return make_error(Code::kUnsupported, "build", "process state of version " + std::to_string(state.version()));
  if (manifest.has_machine()) BATON_TRY(linux_backend::state::check_machine(manifest.machine()));
  std::uint64_t used = 0;
  for (const auto& p : state.processes()) {
    if (p.shares_memory_with() != 0) return make_error(Code::kUnsupported, "build", "process " + std::to_string(p.pid()) + " shares its memory with another process");
    for (const auto& thread : p.threads()) {
      std::uint64_t bits = 0;
      if (thread.xsave().size() >= 576) std::memcpy(&bits, thread.xsave().data() + 512, sizeof bits);
      used |= bits;
    }
  }
  BATON_TRY(linux_backend::state::check_xsave(used));
  if (!state.vdso_digest().empty() && state.vdso_digest() != linux_backend::state::vdso_digest()) {
    return make_error(Code::kUnsupported, "build", "this kernel's vdso differs from the one the program runs with", "Restore on a node with the same kernel.");
  }
  return {};
}

std::int64_t own_offset(const char* clock) {
  auto text = read_file("/proc/self/timens_offsets");
  if (!text) return 0;
  auto at = text->find(clock);
  if (at == std::string::npos) return 0;
  long long seconds = 0, rest = 0;
  if (std::sscanf(text->c_str() + at + std::strlen(clock), "%lld %lld", &seconds, &rest) != 2) return 0;
  return seconds * 1'000'000'000 + rest;
}

// A PID that nobody in the checkpoint has or remembers; for a shadow one that is not next.
int spare_pid(const pb::LinuxState& state, bool shadow) {
  std::set<int> taken{1};
  for (const auto& p : state.processes()) {
    taken.insert({p.pid(), p.pgid(), p.sid()});
    for (const auto& thread : p.threads()) taken.insert(thread.tid());
  }
  int pid = shadow ? kShadowMakerPid : 2;
  while (taken.count(pid) != 0) ++pid;
  return pid;
}

int root_pid(const pb::LinuxState& state) {
  if (state.root_pid() != 0) return state.root_pid();
  return state.processes(0).pid();
}

class LinuxBuild final : public backend::Build {
 public:
  LinuxBuild(const pb::Manifest& manifest, const backend::BuildTarget& target) : manifest_(manifest), target_(target) {
    c_.manifest = &manifest_;
    c_.shadow = target.shadow;
  }

  ~LinuxBuild() override {
    for (const auto& [id, object] : c_.objects) {
      if (!object.temporary.empty()) ::unlink(object.temporary.c_str());
    }
    if (!activated_) {
      for (auto& [object, volume] : c_.volumes) {
        if (volume.server) (void)volume.server->quit().has_value();
      }
    }
    if (activated_ || !keeper_) return;
    ::kill(keeper_->pid(), SIGKILL);
    reap_puppets(c_.group);
    if (watched_) {
      int status = 0;
      ::waitpid(keeper_->pid(), &status, __WALL);
    }
  }

  Result<void> construct() {
    if (!c_.state.ParseFromString(manifest_.state())) return make_error(Code::kCorrupt, "build", "the manifest's process state cannot be read");
    BATON_TRY(check(manifest_, c_.state));
    BATON_ASSIGN(c_.area, find_area(c_.state));
    int highest = 63;
    for (const auto& p : c_.state.processes()) {
      for (const auto& d : p.descriptors()) highest = std::max(highest, d.number());
      if (!p.zombie()) c_.private_owner[p.memory_object()] = p.pid();
    }
    c_.first_number = c_.next_number = highest + 1 + (c_.shadow ? kShadowNumbers : 0);
    BATON_TRY(start_volumes(c_, target_.volumes));
    BATON_TRY(start_keeper());
    BATON_TRY(mount_volumes(c_, keeper_->pid()));
    c_.connections = target_.connections;
    BATON_TRY(open_files(c_));
    BATON_TRY(settle_connections(c_));
    BATON_TRY(make_processes(c_));
    for (auto& [pid, process] : c_.processes) {
      if (process.threads.empty()) continue;
      BATON_TRY(place_descriptors(c_, process));
      BATON_TRY(build_address_space(c_, process));
    }
    BATON_TRY(settle_ipc(c_));
    BATON_TRY(make_threads(c_));
    for (auto& [pid, process] : c_.processes) {
      if (!process.threads.empty()) BATON_TRY(set_attributes(c_, process));
    }
    auto root = c_.processes.find(root_pid(c_.state));
    if (root == c_.processes.end() || root->second.threads.empty()) return make_error(Code::kCorrupt, "build", "the root process is not among the processes");
    root_ = root->second.leader().pid();
    return {};
  }

  Result<void> fill(std::uint64_t object, std::uint64_t first_page, std::span<const std::byte> pages) override {
    auto owner = c_.private_owner.find(object);
    if (owner != c_.private_owner.end()) return fill_private(c_, c_.processes.at(owner->second), first_page, pages);
    if (auto volume = c_.volumes.find(object); volume != c_.volumes.end()) return volume->second.server->fill(first_page, pages);
    auto shared = c_.objects.find(object);
    if (shared == c_.objects.end()) return make_error(Code::kCorrupt, "fill", "memory object " + std::to_string(object) + " is not in the manifest");
    std::uint64_t at = first_page * backend::kPageBytes, size = shared->second.size_bytes;
    if (at >= size) return {};
    return pwrite_all(shared->second.ours.get(), pages.first(std::min<std::uint64_t>(pages.size(), size - at)), static_cast<off_t>(at));
  }

  Result<backend::Followed> apply(const pb::Manifest& next, std::span<const backend::PageRange> dropped) override {
    pb::LinuxState state;
    if (!state.ParseFromString(next.state())) return make_error(Code::kCorrupt, "apply", "the manifest's process state cannot be read");
    if (broken_) return make_error(Code::kFailed, "apply", "an earlier one failed half-way");
    if (auto carried = check(next, state); !carried) return make_error(Code::kConflict, "apply", carried.error().message());
    BATON_TRY(check_follows(c_, next, state));
    broken_ = true;
    BATON_TRY(settle_volumes(c_, false));
    pb::LinuxState old = std::move(c_.state);
    c_.state = std::move(state);
    manifest_ = next;
    manifest_.clear_state();
    std::map<int, const pb::ProcessState*> before;
    for (const auto& process : old.processes()) before[process.pid()] = &process;
    for (const auto& process : c_.state.processes()) {
      auto found = c_.processes.find(process.pid());
      if (found == c_.processes.end()) return make_error(Code::kFailed, "apply", "process " + std::to_string(process.pid()) + " was not built");
      found->second.state = &process;
    }
    backend::Followed followed;
    BATON_TRY(follow_files(c_, old));
    BATON_TRY(follow_ipc(c_, old));
    BATON_TRY(follow_terminals(c_, old));
    for (auto& [pid, process] : c_.processes) {
      if (process.threads.empty()) continue;
      BATON_TRY(follow_threads(process, *before[pid]));
      BATON_TRY(follow_address_space(c_, process, *before[pid], followed.again));
      BATON_TRY(set_record_locks(c_, process));   // mapping a file opened and closed it
      BATON_TRY(follow_attributes(c_, process, *before[pid]));
    }
    BATON_TRY(forget_objects());
    BATON_TRY(drop(dropped));
    followed.clock_ahead = -clock_difference();
    broken_ = false;
    return followed;
  }

  std::chrono::nanoseconds clock_behind() const override { return std::max(std::chrono::nanoseconds(0), clock_difference()); }
  backend::ActivationTimes activation_times() const override { return times_; }

  Result<void> activate(bool paused, std::chrono::nanoseconds) override {
    auto begin = std::chrono::steady_clock::now();
    if (broken_) return make_error(Code::kFailed, "activate", "an apply failed half-way");
    if (auto behind = clock_behind(); behind > kMaxClockWait) {
      return make_error(Code::kConflict, "activate", "its clocks are " + std::to_string(behind.count() / 1000) + " us behind the program's");
    } else if (behind.count() > 0) {
      std::this_thread::sleep_for(behind);   // they never run backwards
    }
    BATON_TRY(settle_volumes(c_, true));
    for (auto& [pid, process] : c_.processes) {
      if (c_.volumes.empty() || process.threads.empty()) continue;
      BATON_TRY(map_volume_files(c_, process));
      BATON_TRY(enter_folder(process));
    }
    const bool stood_by = std::exchange(c_.shadow, false);
    if (stood_by || std::count(c_.open_numbers.begin(), c_.open_numbers.end(), -1) != 0) BATON_TRY(open_late_files(c_));
    if (stood_by) BATON_TRY(settle_connections(c_));
    BATON_TRY(name_memory(c_));
    BATON_TRY(seal());
    // What it holds open must not keep pipes and sockets alive; it ends once the program runs.
    BATON_TRY(c_.maker().checked("close_range", "template process", SYS_close_range, {0, ~0u, 0}));
    for (auto& [pid, process] : c_.processes) {
      if (!process.threads.empty()) BATON_TRY(finish_process(c_, process));
    }
    times_.finish = std::chrono::steady_clock::now() - begin;
    BATON_TRY(keeper_->watch(root_pid(c_.state)));
    watched_ = true;
    if (target_.connect) BATON_TRY(target_.connect());
    BATON_TRY(resume_connections(c_));
    if (paused) BATON_TRY(freeze());
    // Stopped ones first, so that nobody finds them running.
    for (bool stopped : {true, false}) {
      for (auto& [pid, process] : c_.processes) {
        if (process.state->stopped() == stopped) BATON_TRY(release_process(process));
      }
      for (auto& [pid, process] : c_.processes) {
        if (stopped && !paused && process.state->stopped() && !process.threads.empty()) await_stop(process.leader().pid());
      }
    }
    activated_ = true;
    times_.release = std::chrono::steady_clock::now() - begin - times_.finish;
    show_volumes(c_);
    (void)c_.maker().end_killed();
    c_.template_process.clear();
    return {};
  }

  pid_t root() const override { return root_; }
  pid_t keeper() const override { return keeper_ ? keeper_->pid() : 0; }

 private:
  Result<void> start_keeper() {
    KeeperSettings settings;
    settings.new_network = !target_.spec.addresses().empty();
    settings.new_time = true;
    // `away` was true when this build was asked for; time has gone on since.
    const std::int64_t away = (target_.away + (std::chrono::steady_clock::now() - asked_)).count();
    std::int64_t wanted = static_cast<std::int64_t>(c_.state.monotonic_ns()) + away;
    std::int64_t wanted_boot = static_cast<std::int64_t>(c_.state.boottime_ns()) + away;
    std::int64_t now = read_clock(CLOCK_MONOTONIC).count(), boot = read_clock(CLOCK_BOOTTIME).count();
    settings.monotonic_offset_ns = wanted - (now - own_offset("monotonic"));
    settings.boottime_offset_ns = wanted_boot - (boot - own_offset("boottime"));
    c_.monotonic_shift_ns = wanted - now;
    settings.log_path = target_.log_path;
    settings.exit_path = target_.exit_path;
    settings.cgroup = target_.cgroup;
    BATON_ASSIGN(KeeperClient keeper, KeeperClient::start(settings));
    keeper_.emplace(std::move(keeper));
    if (settings.new_network && target_.equip) BATON_TRY(target_.equip(keeper_->pid()));
    int pid = spare_pid(c_.state, c_.shadow);
    BATON_ASSIGN(pid_t here, keeper_->spawn(pid, c_.area, kAreaBytes));
    int needed = c_.first_number + 64 + 2 * c_.state.open_files_size() + 4 * c_.state.pipes_size() + 2 * c_.state.unix_pairs_size() + manifest_.objects_size() + (c_.shadow ? kShadowNumbers : 0);
    if (needed > kMaxNumber) return make_error(Code::kUnsupported, "build", "too many descriptors");
    rlimit now_limit{};
    ::prlimit(here, RLIMIT_NOFILE, nullptr, &now_limit);
    rlimit files{std::max<rlim_t>(now_limit.rlim_cur, static_cast<rlim_t>(needed)), std::max<rlim_t>(now_limit.rlim_max, static_cast<rlim_t>(needed))};
    if (::prlimit(here, RLIMIT_NOFILE, &files, nullptr) != 0) return errno_error("raise the limit of open files", std::to_string(needed));
    BATON_ASSIGN(Puppet maker, Puppet::seize(here, pid, c_.area, c_.group));
    c_.template_process.push_back(std::move(maker));
    return {};
  }

  // The program's monotonic clock at the freeze minus the one that what was built has now.
  std::chrono::nanoseconds clock_difference() const {
    return std::chrono::nanoseconds(static_cast<std::int64_t>(c_.state.monotonic_ns()) - (read_clock(CLOCK_MONOTONIC).count() + c_.monotonic_shift_ns));
  }

  // Objects that nobody has any more; their mappings are gone.
  Result<void> forget_objects() {
    std::set<std::uint64_t> listed;
    for (const auto& object : manifest_.objects()) listed.insert(object.id());
    for (auto it = c_.objects.begin(); it != c_.objects.end();) {
      if (listed.count(it->first) != 0) {
        ++it;
        continue;
      }
      BATON_TRY(c_.maker().call(SYS_close, {static_cast<std::uint64_t>(it->second.number)}));
      forget_number(c_, it->second.number);
      it = c_.objects.erase(it);
    }
    return {};
  }

  Result<void> drop(std::span<const backend::PageRange> ranges) {
    std::map<int, std::vector<backend::PageRange>> of_process;
    for (const auto& range : ranges) {
      if (auto owner = c_.private_owner.find(range.object); owner != c_.private_owner.end()) {
        of_process[owner->second].push_back(range);
        continue;
      }
      if (auto volume = c_.volumes.find(range.object); volume != c_.volumes.end()) {
        BATON_TRY(volume->second.server->drop(range.first_page, range.count));
        continue;
      }
      auto shared = c_.objects.find(range.object);
      if (shared == c_.objects.end()) continue;   // gone as a whole
      if (::fallocate(shared->second.ours.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(range.first_page * backend::kPageBytes),
                      static_cast<off_t>(range.count * backend::kPageBytes)) != 0) {
        return errno_error("drop pages", "memory object " + std::to_string(range.object));
      }
    }
    for (auto& [pid, pages] : of_process) {
      auto& process = c_.processes.at(pid);
      if (!process.threads.empty()) BATON_TRY(drop_private(process, pages));
    }
    return {};
  }

  Result<void> seal() {
    for (const auto& file : c_.state.open_files()) {
      if (file.kind() != pb::OPEN_FILE_MEMFD || (file.memfd_seals() & ~static_cast<unsigned>(F_SEAL_SEAL)) == 0) continue;
      auto found = c_.objects.find(file.object());
      if (found == c_.objects.end()) continue;
      if (::fcntl(found->second.ours.get(), F_ADD_SEALS, file.memfd_seals()) != 0 && errno != EPERM) return errno_error("seal", file.name());
    }
    // Of a file without a name that is only mapped, and only privately: nobody can write to it, and
    // the next capture sees so at a glance.
    std::set<std::uint64_t> writable;
    for (const auto& file : c_.state.open_files()) writable.insert(file.object());
    for (const auto& process : c_.state.processes()) {
      for (const auto& m : process.mappings()) {
        if (m.kind() == pb::MAPPING_SHARED) writable.insert(m.object());
      }
    }
    for (const auto& object : manifest_.objects()) {
      auto found = c_.objects.find(object.id());
      if (object.kind() != pb::MEMORY_OBJECT_FILE_CONTENT || found == c_.objects.end() || writable.count(object.id()) != 0) continue;
      (void)::fcntl(found->second.ours.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK);
    }
    return {};
  }

  // Not waited for: they stop the moment they are let go.
  Result<void> freeze() {
    if (target_.cgroup.empty()) return make_error(Code::kInvalid, "activate", "paused, but no cgroup was given");
    std::string path = target_.cgroup + "/cgroup.freeze";
    BATON_ASSIGN(Fd fd, open_file(path, O_WRONLY));
    if (::write(fd.get(), "1", 1) != 1) return errno_error("write", path);
    return {};
  }

  pb::Manifest manifest_;
  backend::BuildTarget target_;
  Construction c_;
  std::optional<KeeperClient> keeper_;
  pid_t root_ = 0;
  const std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
  backend::ActivationTimes times_;
  bool watched_ = false;
  bool activated_ = false;
  bool broken_ = false;   // an apply failed half-way
};

}  // namespace

Result<std::unique_ptr<backend::Build>> build(const pb::Manifest& manifest, const backend::BuildTarget& target) {
  auto build = std::make_unique<LinuxBuild>(manifest, target);
  BATON_TRY(build->construct());
  return std::unique_ptr<backend::Build>(std::move(build));
}

}  // namespace baton::restore
