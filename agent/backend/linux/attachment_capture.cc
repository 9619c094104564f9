// The freeze: everything between the first thread's stop and the last one's resume, and the
// manifest, which is written after it.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "agent/backend/linux/attachment.h"
#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/state/machine.h"
#include "agent/backend/linux/state/tcp.h"
#include "base/fault_point.h"

namespace baton::linux_backend {
namespace {
using std::chrono::steady_clock;

constexpr int kSettleTries = 20;
constexpr std::chrono::milliseconds kSettlePause{5};
}

struct LinuxAttachment::Captured {
  struct Memory {
    pid_t ns_pid = 0;
    std::shared_ptr<AddressSpace> space;
    pid_t shares_with = 0;           // ns_pid
    std::uint64_t brk = 0;
    Tracee* thread = nullptr;        // one of its threads, as long as the freeze lasts; null: shared
  };
  std::vector<Memory> memories;      // in the tree's order
  std::vector<std::pair<std::uint32_t, std::uint64_t>> descriptor_objects;  // open file, object
  pb::LinuxState state;
  pb::ClockState clocks;
};

Result<backend::CaptureStats> LinuxAttachment::capture(const backend::CaptureOptions& options,
                                                       backend::PageSink& sink, pb::Manifest& manifest) {
  Result<backend::CaptureStats> outcome = backend::CaptureStats{};
  tracer_.run([&] { outcome = do_capture(options, sink, manifest); });
  return outcome;
}

Result<void> LinuxAttachment::order_tree(StoppedTree& tree) {
  if (tree.processes.size() == 1) return {};
  std::map<pid_t, pid_t> parent;
  for (const auto& p : tree.processes) {
    BATON_ASSIGN(auto fields, read_stat_fields(p.pid));
    parent[p.pid] = fields.size() > 1 ? std::atoi(fields[1].c_str()) : 0;
  }
  std::function<int(pid_t)> depth = [&](pid_t pid) {
    auto it = parent.find(pid);
    return it == parent.end() ? 0 : 1 + depth(it->second);
  };
  std::stable_sort(tree.processes.begin(), tree.processes.end(),
                   [&](const StoppedProcess& a, const StoppedProcess& b) {
                     int da = depth(a.pid), db = depth(b.pid);
                     return da != db ? da < db : a.pid < b.pid;
                   });
  return {};
}

Result<void> LinuxAttachment::approach_freeze(const backend::CaptureOptions& options, backend::PageSink& sink,
                                              backend::CaptureStats& stats) {
  auto start = steady_clock::now();
  // Trackers that compare would read everything in each round, and again in the freeze.
  bool exact = std::all_of(processes_.begin(), processes_.end(),
                           [](const auto& e) { return e.second.space->tracker().is_exact(); });
  approach_.begin(exact ? options.approach : std::chrono::microseconds{0});
  while (approach_.another(steady_clock::now() - start)) {
    backend::RoundStats round;
    BATON_TRY(collect_private(sink, nullptr, round));
    BATON_TRY(copy_private(sink, round));
    BATON_TRY(copy_volumes(sink, stats.pages));   // apart: they do not tell how soon memory is written again
    stats.pages.pages_written += round.pages_written;
    stats.pages.pages_copied += round.pages_copied;
    approach_.round_found(round.pages_written);
    if (pages_pending() != 0) break;   // the sink is full: no room for a freeze either
  }
  stats.rounds = approach_.rounds();
  return {};
}

// Null: see `outcome`.
std::unique_ptr<Freeze> LinuxAttachment::freeze_now(Result<void>& outcome) {
  auto unchanged = [&] { return watch_ && watch_->read().other == proven_->counts.other; };
  const Roster* known = proven_ && watch_ && unchanged() ? &proven_->roster : nullptr;
  auto freeze = Freeze::take(members_, known, unchanged);
  if (!freeze) {
    outcome = std::move(freeze).error();
    return nullptr;
  }
  return std::move(*freeze);
}

Result<backend::CaptureStats> LinuxAttachment::do_capture(const backend::CaptureOptions& options,
                                                          backend::PageSink& sink,
                                                          pb::Manifest& manifest) {
  if (kept_) return make_error(Code::kInvalid, "capture", "the workload is frozen already");
  backend::CaptureStats stats;
  Captured captured;
  copy_again(options.again);
  BATON_TRY(fault_point("capture.begin"));
  BATON_TRY(approach_freeze(options, sink, stats));
  state::look_from_outside(state_);
  Result<void> outcome = {};
  auto freeze = freeze_now(outcome);
  if (!freeze) return std::move(outcome).error();
  if (options.keep_frozen) BATON_TRY(let_connections_settle(freeze));
  stats.stop = freeze->all_stopped() - freeze->first_stop();
  outcome = capture_frozen(*freeze, options, sink, stats, captured);
  if (!outcome) proven_.reset();
  const bool proved = freeze->roster_held();
  if (!outcome || !options.keep_frozen) release_network();
  auto before_resume = steady_clock::now();
  auto first_stop = freeze->first_stop();
  if (outcome && options.keep_frozen) {
    emit_staged(sink, stats.pages);
    stats.pages.pages_pending = pages_pending();
    if (stats.pages.pages_pending == 0) {
      stats.pause = steady_clock::now() - first_stop;
      kept_ = std::move(freeze);
    }
  }
  if (!kept_) {
    release_network();
    auto released = freeze->release();
    auto now = steady_clock::now();
    stats.resume = now - before_resume;
    stats.pause = now - first_stop;
    if (!outcome) return std::move(outcome).error();
    BATON_TRY(released);
    emit_staged(sink, stats.pages);
    stats.pages.pages_pending = pages_pending();
  }
  if (stats.pages.pages_pending != 0) {
    proven_.reset();
    return make_error(Code::kNoSpace, "capture",
                      std::to_string(stats.pages.pages_pending) + " pages found no room in the buffer");
  }
  approach_.freeze_found(stats.pages_frozen);
  stats.strategy = approach_.strategy();
  stats.why = approach_.why();
  drop_unseen_objects();
  state::write_state(state_, captured.state);
  captured.clocks = state::captured_clocks(state_);
  write_manifest(captured, manifest);
  judge_watch(proved, stats.stop + stats.scan + stats.state);
  manifest.set_pause_us(static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(stats.pause).count()));
  return stats;
}

// Connections that the program has not accepted yet, or has closed with data on their way,
// have no descriptor and cannot move: a moment later they are mostly gone.
Result<void> LinuxAttachment::let_connections_settle(std::unique_ptr<Freeze>& freeze) {
  if (target_.network == nullptr || target_.spec.tcp() != pb::TCP_ESTABLISHED) return {};
  for (int i = 0; i < kSettleTries; ++i) {
    BATON_ASSIGN(auto loose, state::loose_connections(target_.root));
    if (loose.to_be_accepted + loose.closing == 0) return {};
    BATON_TRY(freeze->release());
    std::this_thread::sleep_for(kSettlePause);
    BATON_ASSIGN(freeze, Freeze::take(members_));
  }
  return {};   // they are reset (docs/coverage.md)
}

Result<void> LinuxAttachment::hold_network() {
  if (target_.network == nullptr) return {};
  BATON_TRY(target_.network->hold());
  network_held_ = true;
  return {};
}

void LinuxAttachment::release_network() {
  if (std::exchange(network_held_, false)) target_.network->release();
}

// The tree's order, and whose memory is whose.
Result<void> LinuxAttachment::describe_tree(Freeze& freeze, StoppedTree& tree, Captured& out) {
  tree.processes = freeze.processes();
  tree.keeper = target_.keeper;
  tree.root = target_.root;
  tree.spec = &target_.spec;
  BATON_TRY(order_tree(tree));
  std::vector<const AddressSpace*> owners;
  std::vector<pid_t> owner_pids;
  for (auto& p : tree.processes) {
    auto it = processes_.find(p.pid);
    if (it == processes_.end()) {
      return make_error(Code::kFailed, "capture", "process " + std::to_string(p.pid) + " was not taken up");
    }
    p.ns_pid = it->second.ns_pid;
    p.memory_object = it->second.space->object();
    Captured::Memory memory;
    memory.ns_pid = p.ns_pid;
    memory.space = it->second.space;
    auto owner = std::find(owners.begin(), owners.end(), it->second.space.get());
    if (owner != owners.end()) {
      p.shares_memory_with = owner_pids[static_cast<std::size_t>(owner - owners.begin())];
      memory.shares_with = processes_.at(p.shares_memory_with).ns_pid;
    } else {
      owners.push_back(it->second.space.get());
      owner_pids.push_back(p.pid);
      auto thread = std::find_if(p.threads.begin(), p.threads.end(),
                                 [](const StoppedThread& t) { return t.tracee != nullptr; });
      memory.thread = thread->tracee;
    }
    out.memories.push_back(std::move(memory));
  }
  return {};
}

// Content that only descriptors refer to.
Result<void> LinuxAttachment::read_objects(backend::PageSink& sink, backend::CaptureStats& stats, Captured& out) {
  for (const auto& d : state::descriptor_objects(state_)) {
    BATON_ASSIGN(Fd fd, open_file("/proc/" + std::to_string(d.pid) + "/fd/" + std::to_string(d.fd), O_RDONLY));
    BATON_ASSIGN(SharedObject * object,
                 shared_object(std::move(fd),
                               d.memfd ? pb::MEMORY_OBJECT_SHARED : pb::MEMORY_OBJECT_FILE_CONTENT, d.name));
    out.descriptor_objects.emplace_back(d.open_file, object->object());
    if (object->seen) continue;
    object->seen = true;
    BATON_ASSIGN(std::uint64_t pages, object->copy(sink));
    stats.pages.pages_copied += pages;
    stats.pages.pages_written += pages;
  }
  return {};
}

Result<void> LinuxAttachment::capture_frozen(Freeze& freeze, const backend::CaptureOptions& options,
                                             backend::PageSink& sink, backend::CaptureStats& stats,
                                             Captured& out) {
  auto start = steady_clock::now();
  BATON_TRY(fault_point("capture.frozen"));
  std::uint64_t before = stats.pages.pages_written;
  BATON_TRY(collect_private(sink, &freeze, stats.pages));
  auto collected = steady_clock::now();
  stats.scan = stats.pages.scan = collected - start;
  if (options.max_pending_pages != 0 && pages_pending() > options.max_pending_pages) {
    return make_error(Code::kNoSpace, "capture",
                      std::to_string(pages_pending()) + " pages are left to copy, more than " +
                          std::to_string(options.max_pending_pages));
  }
  BATON_TRY(options.verify ? copy_private(sink, stats.pages) : stage_private(sink, stats.pages));
  BATON_TRY(copy_shared(sink, stats.pages, freeze.roster_held(), true));
  BATON_TRY(copy_volumes(sink, stats.pages));
  BATON_ASSIGN(const bool flushed, flush_volume_mappings());
  if (flushed) BATON_TRY(copy_volumes(sink, stats.pages));
  BATON_TRY(fault_point("capture.copied"));
  auto copied = steady_clock::now();
  VerifyReport report;
  if (options.verify && pages_pending() == 0) {
    // Here, because reading the rest of the state runs injected calls, after which the kernel
    // writes the thread's processor number into its rseq area (rseq(2)), as it does at every resume.
    std::set<const AddressSpace*> verified;
    for (auto& [pid, p] : processes_) {
      if (verified.insert(p.space.get()).second) BATON_TRY(p.space->verify(report));
    }
    copied = steady_clock::now();
  }
  Stillness still = stillness(true);
  state::Unchanged unchanged;
  unchanged.calls = freeze.roster_held();
  unchanged.descriptors = unchanged.calls && watch_->read().descriptor == proven_->counts.descriptor;
  unchanged.transfers = still.transfers;
  unchanged.notes = unchanged.calls ? watch_.get() : nullptr;
  StoppedTree tree;
  BATON_TRY(describe_tree(freeze, tree, out));
  tree.connections = target_.spec.tcp() == pb::TCP_ESTABLISHED && (options.keep_frozen || target_.spec.output_commit());
  if (tree.connections) BATON_TRY(hold_network());
  // Before the connections are read: what leaves from here on may not be in what is read of them.
  if (network_held_) stats.output_epoch = target_.network->mark_output();
  BATON_TRY(state::capture_state(tree, state_, unchanged));
  if (tree.connections && !network_held_ && !target_.spec.addresses().empty()) {
    pb::LinuxState read;
    state::write_state(state_, read);
    for (const auto& file : read.open_files()) {
      if (file.socket().kind() != pb::SOCKET_TCP) continue;
      return make_error(Code::kUnsupported, "capture", "TCP connections: this node cannot hold what arrives meanwhile",
                        "The warden's log says what its kernel lacks; --tcp close goes without.");
    }
  }
  BATON_TRY(fault_point("capture.state_read"));
  // By an injected call: after everything that wants the threads as they stopped.
  for (auto& m : out.memories) {
    if (m.thread == nullptr) continue;
    BATON_TRY(m.space->know_layout());   // read once: a short-lived process may be gone after the thaw
    BATON_ASSIGN(m.brk, m.space->program_break(*m.thread, still.mappings));
  }
  BATON_TRY(read_objects(sink, stats, out));
  if (watch_) {
    // Our own calls are counted too: the last of them are made here, not at the thaw.
    for (auto& p : freeze.processes()) {
      for (auto& t : p.threads) {
        if (t.tracee != nullptr) BATON_TRY(t.tracee->release_scratch());
      }
    }
    SyscallWatch::Counts counts = watch_->read();
    watch_->forget();
    if (proven_ && freeze.roster_held()) proven_->counts = counts;
    else proven_ = Proven{counts, freeze.roster()};
  }
  stats.pages_frozen = stats.pages.pages_written - before;
  auto read = steady_clock::now();
  stats.copy = stats.pages.copy = copied - collected;
  stats.state = read - copied;
  if (options.verify) {
    for (auto& [key, object] : shared_) {
      if (object->seen) BATON_TRY(object->verify(report));
    }
    if (pages_pending() == 0) BATON_TRY(verify_volumes(report));
    stats.verify_pages = report.pages;
    stats.verify_differences = report.differences;
    stats.verify_first = report.first;
  }
  return {};
}

void LinuxAttachment::prove_files(const Captured& captured, pb::Manifest& manifest) {
  std::map<std::string, pb::FileProof> proofs;
  for (const auto& m : captured.memories) {
    if (m.shares_with != 0) continue;
    const MemoryMap& map = m.space->map();
    for (const Vma& v : map.vmas()) {
      if ((v.kind != pb::MAPPING_FILE_PRIVATE && v.kind != pb::MAPPING_FILE_SHARED) || v.is_nameless()) continue;
      pb::Mapping mapping;
      fill_mapping(map, v, mapping);
      if (in_volume(mapping.path())) continue;
      pb::FileProof& proof = proofs[mapping.path()];
      proof.set_path(mapping.path());
      proof.set_size_bytes(v.file->size_bytes);
      proof.set_mode(v.file->mode);
      proof.set_mtime_ns(v.file->mtime_ns);
      proof.set_mapped(true);
      if (v.shared && (mapping.prot() & 2) != 0) proof.set_writable(true);
    }
  }
  for (const auto& f : captured.state.open_files()) {
    if (f.path().empty() || f.path().front() != '/' || f.object() != 0 || in_volume(f.path())) continue;
    std::string here = "/proc/" + std::to_string(target_.root) + "/root" + f.path();
    struct stat st {};
    if (::stat(here.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) continue;
    pb::FileProof& proof = proofs[f.path()];
    proof.set_path(f.path());
    proof.set_size_bytes(static_cast<std::uint64_t>(st.st_size));
    proof.set_mode(st.st_mode);
    proof.set_mtime_ns(static_cast<std::uint64_t>(st.st_mtim.tv_sec) * 1'000'000'000u +
                       static_cast<std::uint64_t>(st.st_mtim.tv_nsec));
    if ((f.flags() & O_ACCMODE) != O_RDONLY) proof.set_writable(true);
  }
  for (auto& [path, proof] : proofs) *manifest.add_files() = std::move(proof);
}

void LinuxAttachment::write_manifest(const Captured& captured, pb::Manifest& manifest) {
  pb::LinuxState state = captured.state;
  state.set_version(1);
  for (const auto& m : captured.memories) {
    pb::ProcessState* p = nullptr;
    for (auto& existing : *state.mutable_processes()) {
      if (existing.pid() == m.ns_pid) p = &existing;
    }
    if (p == nullptr) {
      p = state.add_processes();
      p->set_pid(m.ns_pid);
    }
    p->set_memory_object(m.space->object());
    p->set_shares_memory_with(m.shares_with);
    if (m.shares_with != 0) continue;
    write_mappings(m.space->map(), [&](const Vma& v) -> std::uint64_t {
      auto it = by_maps_key_.find(maps_key(v));
      return it == by_maps_key_.end() ? 0 : it->second->object();
    }, *p);
    m.space->write_flags(kept_ != nullptr, *p);
    m.space->write_guards(*p);
    if (auto layout = m.space->layout()) *p->mutable_layout() = std::move(*layout);   // read in the freeze
    p->mutable_layout()->set_brk(m.brk);
    pb::MemoryObject* object = manifest.add_objects();
    object->set_id(m.space->object());
    object->set_kind(pb::MEMORY_OBJECT_PRIVATE);
    object->set_name("pid " + std::to_string(m.ns_pid));
  }
  for (const auto& [open_file, id] : captured.descriptor_objects) {
    state.mutable_open_files(static_cast<int>(open_file))->set_object(id);
  }
  for (const auto& segment : ipc_content_.segments) *state.add_sysv_segments() = segment;
  for (const auto& set : ipc_content_.semaphores) *state.add_sysv_semaphores() = set;
  for (const auto& queue : ipc_content_.queues) *state.add_sysv_queues() = queue;
  for (const auto& queue : ipc_content_.posix_queues) *state.add_posix_queues() = queue;
  for (const auto& [key, shared] : shared_) {
    if (!shared->seen) continue;
    pb::MemoryObject* object = manifest.add_objects();
    object->set_id(shared->object());
    object->set_kind(shared->kind());
    object->set_size_bytes(shared->size_bytes());
    object->set_name(shared->name());
    if (auto named = shared->named()) *state.add_named_memory() = std::move(*named);
  }
  write_volumes(state, manifest);
  manifest.set_version(1);
  manifest.set_backend("linux");
  manifest.set_workload(target_.spec.name());
  *manifest.mutable_machine() = state::machine_state();
  *manifest.mutable_clocks() = captured.clocks;
  prove_files(captured, manifest);
  manifest.set_state(state.SerializeAsString());
}

}  // namespace baton::linux_backend
