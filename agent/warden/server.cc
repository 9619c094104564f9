#include "agent/warden/server.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <map>
#include <mutex>
#include <thread>

#include <boost/crc.hpp>

#include "agent/backend/registry.h"
#include "agent/warden/capture_buffer.h"
#include "agent/warden/files.h"
#include "agent/warden/exec.h"
#include "agent/warden/lease_table.h"
#include "agent/warden/node_facts.h"
#include "agent/warden/wire.h"
#include "agent/warden/workload.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::warden {
namespace {

using namespace std::chrono_literals;
constexpr std::size_t kWorkloadsMax = 256;
constexpr std::size_t kPoolThreads = 2;
constexpr std::size_t kPoolQueueMax = 64;
constexpr std::size_t kLogBytesMax = 1u << 20;
constexpr auto kSendTimeout = 5s;
constexpr int kInspectLooks = 15;
constexpr auto kInspectPause = 20ms;

// In a tracer's stop, as in a freeze.
bool is_stopped(pid_t pid) {
  auto stat = read_file("/proc/" + std::to_string(pid) + "/stat", 4096);
  if (!stat) return false;
  const auto name_end = stat->rfind(") ");
  return name_end != std::string::npos && name_end + 2 < stat->size() && (*stat)[name_end + 2] == 't';
}
constexpr int kIdleTrimMs = 5000;

// What an epoll entry means.
constexpr std::uint64_t kListenerTag = 1;
constexpr std::uint64_t kAgentTag = 2;
constexpr std::uint64_t kWakeTag = 3;
constexpr std::uint64_t kFirstWorkload = 16;

void set_error(pb::WardenResponse& response, const Error& error) {
  auto& out = *response.mutable_error();
  out.set_code(static_cast<int>(error.code));
  out.set_sys_errno(error.sys_errno);
  out.set_operation(error.operation);
  out.set_subject(error.subject);
  out.set_hint(error.hint);
}

// The workload that a request is about; empty when it is about none.
std::string workload_of(const pb::WardenRequest& request) {
  using Op = pb::WardenRequest;
  switch (request.op_case()) {
    case Op::kRun: return request.run().spec().name();
    case Op::kProtect: return request.protect().spec().name();
    case Op::kBuild: return request.build().workload();
    case Op::kRound: return request.round().workload();
    case Op::kCapture: return request.capture().workload();
    case Op::kThaw: return request.thaw().workload();
    case Op::kHold: return request.hold().workload();
    case Op::kStop: return request.stop().workload();
    case Op::kRelease: return request.release().workload();
    case Op::kFill: return request.fill().workload();
    case Op::kActivate: return request.activate().workload();
    case Op::kSignal: return request.signal().workload();
    case Op::kShadow: return request.shadow().workload();
    case Op::kLease: return request.lease().workload();
    case Op::kExec: return request.exec().workload();
    default: return {};
  }
}

Error busy(const std::string& what) {
  return make_error(Code::kNoSpace, "warden", "too many requests wait for " + what, "Wait for answers first.");
}

}  // namespace

struct Server::Impl {
  ServerOptions options;
  std::unique_ptr<RecordStore> records;
  std::unique_ptr<LeaseTable> leases;
  std::unique_ptr<CaptureBuffer> capture_buffer;
  SharedMemory fill_buffer;
  FileRoom files;
  std::unique_ptr<network::Switch> frames;
  Surroundings around;
  std::map<std::string, std::unique_ptr<backend::Backend>> backends;
  std::mutex facts_mutex;
  std::optional<pb::NodeFacts> facts;

  Fd epoll, wake;
  std::atomic<bool> stopping{false};
  UnixListener listener;
  std::vector<std::thread> pool;
  BoundedQueue<std::function<void()>> pool_tasks{kPoolQueueMax};

  // The connection. `generation` names it: an answer to an earlier one is dropped.
  std::mutex send_mutex;
  UnixSocket agent;
  std::uint64_t generation = 0;     // changed under send_mutex
  bool connected = false;           // greeted; under send_mutex
  bool greeted = false;             // loop only

  std::mutex workloads_mutex;
  std::map<std::string, std::shared_ptr<Workload>> workloads;
  std::uint64_t next_workload = kFirstWorkload;

  Watchdog watchdog;                // its thread ends before what its calls use
  std::unique_ptr<LeaseEnforcer> enforcer;
  std::unique_ptr<GuardKeeper> guard;

  ~Impl() {
    guard.reset();
    enforcer.reset();
    disconnect();
    pool_tasks.close();
    for (auto& thread : pool) thread.join();
    std::map<std::string, std::shared_ptr<Workload>> ending;
    {
      std::lock_guard lock(workloads_mutex);
      ending.swap(workloads);
    }
    ending.clear();
    if (!around.cgroups.path().empty()) ::rmdir(around.cgroups.path().c_str());   // stays while workloads run
  }

  backend::Backend* backend(const std::string& name) const {
    auto it = backends.find(name);
    return it == backends.end() ? nullptr : it->second.get();
  }

  void add_epoll(int fd, std::uint64_t tag, std::uint32_t events = EPOLLIN) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = tag;
    if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0 && errno == EEXIST) {
      ::epoll_ctl(epoll.get(), EPOLL_CTL_MOD, fd, &event);
    }
  }

  // ---- workloads

  std::shared_ptr<Workload> find(const std::string& name) {
    std::lock_guard lock(workloads_mutex);
    auto it = workloads.find(name);
    return it == workloads.end() ? nullptr : it->second;
  }

  std::shared_ptr<Workload> find_or_make(const std::string& name) {
    std::lock_guard lock(workloads_mutex);
    auto& entry = workloads[name];
    if (!entry) {
      if (workloads.size() > kWorkloadsMax) {
        workloads.erase(name);
        return nullptr;
      }
      entry = std::make_shared<Workload>(around, next_workload++, name);
    }
    return entry;
  }

  bool post_by_id(std::uint64_t id, std::function<void()> task) {
    std::lock_guard lock(workloads_mutex);
    for (auto& [name, workload] : workloads) {
      if (workload->id() == id) return workload->post(std::move(task), true);
    }
    return false;
  }

  // Names under which there is nothing (any more) lose their thread.
  void sweep() {
    std::vector<std::shared_ptr<Workload>> ended;
    std::lock_guard lock(workloads_mutex);
    for (auto it = workloads.begin(); it != workloads.end();) {
      if (it->second->idle() && it->second->snapshot().state().empty()) {
        ended.push_back(std::move(it->second));
        it = workloads.erase(it);
      } else {
        ++it;
      }
    }
  }

  std::string address_holder(std::uint64_t id, const pb::WorkloadSpec& spec) {
    std::lock_guard lock(workloads_mutex);
    for (auto& [name, workload] : workloads) {
      if (workload->id() == id || workload->snapshot().state() == "exited") continue;
      const auto place = workload->place();
      for (const auto& theirs : place.spec.addresses()) {
        auto b = network::parse_address(theirs);
        for (const auto& mine : spec.addresses()) {
          auto a = network::parse_address(mine);
          if (a && b && a->same_host(*b)) return name;
        }
      }
    }
    return {};
  }

  void process_ended(std::uint64_t id) {
    std::lock_guard lock(workloads_mutex);
    for (auto& [name, workload] : workloads) {
      if (workload->id() != id) continue;
      Workload* target = workload.get();
      if (!workload->post([target] { target->process_ended(); }, true)) {
        spdlog::error("{}: its end has to wait, too much is queued", name);
        watchdog.after(100ms, [this, id] { process_ended(id); });
      }
    }
  }

  // ---- answers

  // Sends to the agent that asked; gives captured pages to it, or back when it has gone.
  void respond(std::uint64_t asked_by, pb::WardenResponse& response) {
    const CaptureBuffer::Runs* runs = nullptr;
    if (response.has_round()) runs = &response.round().runs();
    if (response.has_capture()) runs = &response.capture().runs();
    std::lock_guard lock(send_mutex);
    if (generation != asked_by || !agent) {
      if (runs) capture_buffer->take_back(*runs);
      return;
    }
    if (runs) capture_buffer->give(*runs);
    auto sent = send_message(agent, response);
    if (sent) return;
    if (sent.error().code == Code::kNoSpace) {
      if (runs) (void)capture_buffer->free_runs(*runs).has_value();
      pb::WardenResponse instead;
      instead.set_id(response.id());
      set_error(instead, sent.error());
      if (send_message(agent, instead)) return;
    }
    spdlog::warn("the agent's connection is closed: {}", sent.error().message());
    agent.shutdown();   // the loop sees the end and cleans up
  }

  void send_event(const pb::WardenEvent& event) {
    std::lock_guard lock(send_mutex);
    if (!connected) return;   // told by hello's repetition and by list
    pb::WardenResponse response;
    *response.mutable_event() = event;
    if (!send_message(agent, response)) agent.shutdown();
  }

  void respond_error(std::uint64_t asked_by, std::uint64_t id, const Error& error) {
    pb::WardenResponse response;
    response.set_id(id);
    set_error(response, error);
    respond(asked_by, response);
  }

  // Runs `work` for request `id` and answers with what it filled in, or with its error.
  template <typename Work>
  std::function<void()> task(std::uint64_t asked_by, std::uint64_t id, Work work) {
    return [this, asked_by, id, work = std::move(work)]() mutable {
      pb::WardenResponse response;
      response.set_id(id);
      Result<void> done;
      try {
        done = work(response);
      } catch (const std::exception& error) {
        done = make_error(Code::kFailed, "warden", error.what());
      }
      if (!done) {
        if (response.has_round()) capture_buffer->take_back(response.round().runs());
        if (response.has_capture()) capture_buffer->take_back(response.capture().runs());
        response.clear_result();
        set_error(response, done.error());
      }
      respond(asked_by, response);
    };
  }

  template <typename Work>
  void on_pool(std::uint64_t asked_by, std::uint64_t id, Work work) {
    if (!pool_tasks.try_push(task(asked_by, id, std::move(work)))) respond_error(asked_by, id, busy("the warden"));
  }

  // Work(Workload&, WardenResponse&) on the workload's thread; `make`: the name may be new.
  template <typename Work>
  void on_workload(std::uint64_t asked_by, std::uint64_t id, const std::string& name, bool make, Work work) {
    if (auto sound = check_name(name); !sound) return respond_error(asked_by, id, sound.error());
    auto workload = make ? find_or_make(name) : find(name);
    if (!workload) {
      return respond_error(asked_by, id,
                           make ? make_error(Code::kNoSpace, "warden", "256 workloads are the limit of a node")
                                : make_error(Code::kNotFound, "warden", "no workload " + name + " on this node"));
    }
    Workload* target = workload.get();   // the thread that runs the task is the workload's own
    if (!workload->post(task(asked_by, id, [target, work = std::move(work)](pb::WardenResponse& response) mutable {
          auto done = work(*target, response);
          target->publish();   // before the answer: who has it may ask for the list at once
          return done;
        }))) {
      respond_error(asked_by, id, busy("workload " + name));
    }
  }

  // ---- requests

  // On the loop's thread: a lease must not wait behind a capture.
  Result<void> lease(const pb::LeaseRequest& request, pb::WardenResponse& response) {
    BATON_TRY(check_name(request.workload()));
    auto workload = find(request.workload());
    auto now = workload ? workload->snapshot() : pb::WorkloadProcess();
    if (now.state().empty()) {
      return make_error(Code::kNotFound, "lease", "no workload " + request.workload() + " on this node");
    }
    if (now.state() != "running" && now.state() != "activating") {
      return make_error(Code::kConflict, "lease", request.workload() + " is " + now.state() + ", not running");
    }
    if (request.incarnation() < now.incarnation()) {
      return make_error(Code::kConflict, "lease",
                        request.workload() + " is of incarnation " + std::to_string(now.incarnation()) + " here, not " +
                            std::to_string(request.incarnation()));
    }
    BATON_ASSIGN(bool thawed, leases->renew(request.workload(), workload->place().cgroup, request.until_boot_ns(),
                                            request.incarnation()));
    // Closed by the kernel at the same instant, whatever becomes of the freeze.
    BATON_TRY(workload->open_gate(request.until_boot_ns()));
    response.mutable_lease()->set_was_frozen(thawed);
    if (thawed) spdlog::info("{}: leased again, thawed", request.workload());
    return {};
  }

  Result<void> prefer_thread(pid_t tid) {
    ucred peer{};
    socklen_t bytes = sizeof peer;
    if (::getsockopt(agent.fd(), SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return errno_error("prefer thread", "SO_PEERCRED");
    const std::string task = "/proc/" + std::to_string(peer.pid) + "/task/" + std::to_string(tid);
    if (tid <= 0 || ::access(task.c_str(), F_OK) != 0) {
      return make_error(Code::kNotAllowed, "prefer thread", std::to_string(tid) + " is no thread of this agent");
    }
    sched_param priority{};
    priority.sched_priority = 1;
    if (::sched_setscheduler(tid, SCHED_RR | SCHED_RESET_ON_FORK, &priority) != 0) return errno_error("prefer thread", std::to_string(tid));
    return {};
  }

  Result<void> probe(pb::WardenResponse& response) {
    std::lock_guard lock(facts_mutex);
    std::vector<backend::Backend*> all;
    if (!facts) {
      for (auto& [name, one] : backends) all.push_back(one.get());
      facts = collect_node_facts(all);
    } else {
      // What a kernel can do does not change; how much memory is free does.
      facts->set_memory_free_bytes(collect_node_facts({}).memory_free_bytes());
    }
    *response.mutable_probe() = *facts;
    return {};
  }

  Result<void> inspect(const pb::InspectRequest& request, pb::WardenResponse& response) {
    backend::AttachTarget target;
    std::string kind = options.backend;
    target.spec = request.spec();
    if (!request.workload().empty()) {
      auto workload = find(request.workload());
      auto place = workload ? workload->place() : Workload::Place{};
      if (place.root == 0) {
        return make_error(Code::kNotFound, "inspect", "no workload " + request.workload() + " on this node");
      }
      target.root = place.root;
      target.keeper = place.keeper;
      target.cgroup = place.cgroup;
      if (target.spec.name().empty()) target.spec = place.spec;
      kind = place.backend;
    } else {
      target.root = static_cast<pid_t>(request.pid());
      if (request.pid() != target.root) return make_error(Code::kNotFound, "inspect", "no such PID");
      BATON_TRY(check_protectable(target.root));
    }
    backend::Backend* with = backend(kind);
    if (!with) return make_error(Code::kUnsupported, "inspect", "this node has no backend '" + kind + "'");
    BATON_ASSIGN(backend::Inspection seen, with->inspect(target));
    // A running program may be in the middle of something (a vfork(2), a child that ends and
    // closes the other end of a pipe) that is over when one looks again. Not a frozen one.
    for (int look = 1; look < kInspectLooks && !seen.acceptable && !is_stopped(target.root); ++look) {
      std::this_thread::sleep_for(kInspectPause);
      BATON_ASSIGN(seen, with->inspect(target));
    }
    auto& out = *response.mutable_inspect();
    for (auto& verdict : seen.verdicts) *out.add_verdicts() = std::move(verdict);
    out.set_acceptable(seen.acceptable);
    *out.mutable_machine() = std::move(seen.machine);
    for (auto& proof : seen.files) {
      auto& file = *out.add_files();
      file = std::move(proof);
      if (!file.sha256().empty()) continue;
      auto held = files.prove(file.path(), target.root, may_change_unseen(file));
      if (!held) continue;   // no digest: the target cannot prove it, and says so
      file.set_sha256(held->sha256());
      file.set_size_bytes(held->size_bytes());
      file.set_mode(held->mode());
      file.set_mtime_ns(held->mtime_ns());
    }
    return {};
  }

  Result<void> logs(const pb::LogsRequest& request, pb::WardenResponse& response) {
    auto workload = find(request.workload());
    auto place = workload ? workload->place() : Workload::Place{};
    if (place.cgroup.empty()) {
      return make_error(Code::kNotFound, "logs", "no workload " + request.workload() + " on this node");
    }
    if (!place.has_log) {
      return make_error(Code::kUnsupported, "logs", request.workload() + " was not started by Baton, which does not hold its output");
    }
    std::size_t bytes = request.max_bytes() == 0 ? kLogBytesMax : std::min<std::size_t>(request.max_bytes(), kLogBytesMax);
    auto& out = *response.mutable_logs();
    auto file = open_file(place.log_path, O_RDONLY);
    if (!file) {
      if (file.error().code != Code::kNotFound) return file.error();
      out.set_next_offset(0);   // nothing was written yet
      return {};
    }
    off_t size = ::lseek(file->get(), 0, SEEK_END);
    if (size < 0) return errno_error("lseek", place.log_path);
    off_t from = request.offset();
    if (from < 0) from = std::max<off_t>(0, size - static_cast<off_t>(bytes));
    if (from > size) from = 0;  // a new file since then
    bytes = std::min(bytes, static_cast<std::size_t>(size - from));
    out.mutable_data()->resize(bytes);
    BATON_TRY(pread_exact(file->get(), std::as_writable_bytes(std::span(out.mutable_data()->data(), bytes)), from));
    out.set_next_offset(from + static_cast<off_t>(bytes));
    return {};
  }

  void list(pb::WardenResponse& response) {
    std::lock_guard lock(workloads_mutex);
    auto& out = *response.mutable_list();
    for (auto& [name, workload] : workloads) {
      auto one = workload->snapshot();
      if (!one.state().empty()) *out.add_workloads() = std::move(one);
    }
  }

  void dispatch(pb::WardenRequest& request);
  void greet(const pb::WardenRequest& request);

  // ---- connections

  void disconnect() {
    {
      std::lock_guard lock(send_mutex);
      if (!agent) return;
      ++generation;
      connected = false;
      ::epoll_ctl(epoll.get(), EPOLL_CTL_DEL, agent.fd(), nullptr);
      agent.close();
      capture_buffer->free_all_given();
    }
    greeted = false;
    spdlog::info("the agent has disconnected");
    std::lock_guard lock(workloads_mutex);
    for (auto& [name, workload] : workloads) {
      Workload* target = workload.get();
      if (!workload->post([target] { target->agent_gone(); }, true)) {
        spdlog::error("{}: too much is queued to be told that the agent has gone", name);
      }
    }
  }

  void accept_agent() {
    auto socket = listener.accept();
    if (!socket) {
      spdlog::warn("{}", socket.error().message());
      return;
    }
    auto peer = socket->peer();
    if (!peer || (peer->uid != options.agent_uid && peer->uid != 0)) {
      spdlog::warn("refused a connection of user {}", peer ? static_cast<long>(peer->uid) : -1);
      return;
    }
    if (agent) {
      // The earlier agent may have gone without our having seen it yet.
      char byte;
      ssize_t n = ::recv(agent.fd(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
      if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
        disconnect();
      } else {
        pb::WardenResponse response;
        set_error(response, make_error(Code::kConflict, "warden", "another agent is connected to this warden",
                                       "Stop it first: one agent per node."));
        (void)send_message(*socket, response).has_value();
        return;
      }
    }
    socket->grow_buffers(kInlineMax * 8);
    (void)socket->set_send_timeout(std::chrono::duration_cast<std::chrono::milliseconds>(kSendTimeout)).has_value();
    std::lock_guard lock(send_mutex);
    agent = std::move(*socket);
    ++generation;
    add_epoll(agent.fd(), kAgentTag);
  }

  void read_agent() {
    pb::WardenRequest request;
    std::vector<Fd> fds;
    auto got = receive_message(agent, request, fds);
    if (!got || !*got) {
      if (!got) spdlog::warn("the agent's connection is closed: {}", got.error().message());
      disconnect();
      return;
    }
    if (request.op_case() == pb::WardenRequest::kHello) return greet(request);
    if (!greeted) {
      spdlog::warn("the agent's connection is closed: it did not begin with hello");
      disconnect();
      return;
    }
    dispatch(request);
  }

  Result<void> loop() {
    make_realtime();   // leases pass through here
    bool trimmed = true;
    while (!stopping.load()) {
      epoll_event events[16];
      int count = ::epoll_wait(epoll.get(), events, 16, trimmed ? -1 : kIdleTrimMs);
      if (count < 0 && errno != EINTR) return errno_error("epoll_wait", "");
      if (count == 0) {
        capture_buffer->trim();
        trimmed = true;
      }
      for (int i = 0; i < count; ++i) {
        switch (std::uint64_t tag = events[i].data.u64) {
          case kListenerTag: accept_agent(); break;
          case kAgentTag:
            trimmed = false;
            if (agent) read_agent();
            break;
          case kWakeTag: break;
          default: process_ended(tag); break;
        }
      }
      sweep();
    }
    return {};
  }
};

void Server::Impl::greet(const pb::WardenRequest& request) {
  pb::WardenResponse response;
  response.set_id(request.id());
  auto& hello = *response.mutable_hello();
  hello.set_version(kProtocolVersion);
  hello.set_capture_bytes(capture_buffer->size());
  hello.set_fill_bytes(fill_buffer.bytes().size());
  auto capture = capture_buffer->open_read_only();
  if (request.hello().version() != kProtocolVersion || !capture) {
    set_error(response, capture ? make_error(Code::kUnsupported, "warden", "it speaks another version",
                                             "Install the same version of agent and warden.")
                                : capture.error());
    respond(generation, response);
    return disconnect();
  }
  int fds[] = {capture->get(), fill_buffer.fd()};
  bool sent;
  {
    std::lock_guard lock(send_mutex);
    sent = send_message(agent, response, fds).has_value();
    connected = sent;
  }
  if (!sent) return disconnect();
  greeted = true;
  spdlog::info("an agent has connected");
  // What ended while nobody listened.
  std::vector<pb::WorkloadProcess> ended;
  {
    std::lock_guard lock(workloads_mutex);
    for (auto& [name, workload] : workloads) {
      auto one = workload->snapshot();
      if (one.state() == "exited") ended.push_back(std::move(one));
    }
  }
  for (const auto& one : ended) {
    pb::WardenEvent event;
    event.set_workload(one.workload());
    event.set_exited(true);
    event.set_wait_status(one.wait_status());
    send_event(event);
  }
}

void Server::Impl::dispatch(pb::WardenRequest& request) {
  const std::uint64_t by = generation, id = request.id();
  const std::string name = workload_of(request);
  using Op = pb::WardenRequest;
  switch (request.op_case()) {
    case Op::kFreeBuffer: {
      auto freed = capture_buffer->free_runs(request.free_buffer().runs());
      if (!freed) spdlog::warn("from the agent: {}", freed.error().message());
      return;
    }
    case Op::kList: {
      pb::WardenResponse response;
      response.set_id(id);
      list(response);
      return respond(by, response);
    }
    case Op::kReleaseOutput: {   // here and now: the workload's own thread may be in a capture
      auto workload = find(request.release_output().workload());
      auto done = workload ? workload->release_output(request.release_output().epoch())
                           : Result<void>(make_error(Code::kNotFound, "release output", "no such workload on this node"));
      if (!done) return respond_error(by, id, done.error());
      pb::WardenResponse response;
      response.set_id(id);
      return respond(by, response);
    }
    case Op::kLease: {
      pb::WardenResponse response;
      response.set_id(id);
      if (auto done = lease(request.lease(), response); !done) return respond_error(by, id, done.error());
      return respond(by, response);
    }
    case Op::kPreferThread: {
      if (auto done = prefer_thread(request.prefer_thread().tid()); !done) return respond_error(by, id, done.error());
      pb::WardenResponse response;
      response.set_id(id);
      return respond(by, response);
    }
    case Op::kProbe:
      return on_pool(by, id, [this](auto& response) { return probe(response); });
    case Op::kInspect:
      return on_pool(by, id, [this, op = std::move(*request.mutable_inspect())](auto& response) {
        return inspect(op, response);
      });
    case Op::kLogs:
      return on_pool(by, id, [this, op = std::move(*request.mutable_logs())](auto& response) {
        return logs(op, response);
      });
    case Op::kExec:
      return on_pool(by, id, [this, op = std::move(*request.mutable_exec())](auto& response) -> Result<void> {
        auto workload = find(op.workload());
        const pid_t root = workload ? workload->place().root : 0;
        if (root == 0) return make_error(Code::kNotFound, "exec", "no workload " + op.workload() + " runs on this node");
        BATON_ASSIGN(*response.mutable_exec(), exec_inside(root, {op.argv().begin(), op.argv().end()}, std::chrono::microseconds(op.timeout_us())));
        return {};
      });
    case Op::kProveFiles:
      return on_pool(by, id, [this, op = std::move(*request.mutable_prove_files())](auto& response) -> Result<void> {
        *response.mutable_prove_files() = files.compare(op);
        return {};
      });
    case Op::kReadFile:
      return on_pool(by, id, [this, op = std::move(*request.mutable_read_file())](auto& response) -> Result<void> {
        pid_t root = 0;
        if (!op.workload().empty()) {
          auto workload = find(op.workload());
          root = workload ? workload->place().root : 0;
          if (root == 0) return make_error(Code::kNotFound, "read", "no workload " + op.workload() + " on this node");
        }
        BATON_ASSIGN(*response.mutable_read_file(), FileRoom::read(op, root));
        return {};
      });
    case Op::kWriteFile:
      return on_pool(by, id, [this, op = std::move(*request.mutable_write_file())](auto&) { return files.write(op); });
    case Op::kRun:
      return on_workload(by, id, name, true,
                         [op = std::move(*request.mutable_run())](Workload& w, auto& response) -> Result<void> {
                           BATON_ASSIGN(*response.mutable_run(), w.run(op.spec()));
                           return {};
                         });
    case Op::kProtect:
      return on_workload(by, id, name, true,
                         [op = std::move(*request.mutable_protect())](Workload& w, auto& response) -> Result<void> {
                           BATON_ASSIGN(*response.mutable_run(), w.protect(op.spec()));
                           return {};
                         });
    case Op::kBuild:
      return on_workload(by, id, name, true,
                         [op = std::move(*request.mutable_build())](Workload& w, auto&) { return w.build(op); });
    case Op::kRound:
      return on_workload(by, id, name, false,
                         [op = std::move(*request.mutable_round())](Workload& w, auto& response) {
                           return w.round(op, *response.mutable_round());
                         });
    case Op::kCapture:
      return on_workload(by, id, name, false,
                         [op = std::move(*request.mutable_capture())](Workload& w, auto& response) {
                           return w.capture(op, *response.mutable_capture());
                         });
    case Op::kThaw:
      return on_workload(by, id, name, false, [](Workload& w, auto&) { return w.thaw(); });
    case Op::kHold:
      return on_workload(by, id, name, false, [](Workload& w, auto&) { return w.hold(); });
    case Op::kStop:
      return on_workload(by, id, name, false,
                         [op = request.stop()](Workload& w, auto&) { return w.stop(op); });
    case Op::kRelease:
      return on_workload(by, id, name, false, [](Workload& w, auto&) { return w.release(); });
    case Op::kFill:
      return on_workload(by, id, name, false,
                         [op = std::move(*request.mutable_fill())](Workload& w, auto&) { return w.fill(op); });
    case Op::kActivate:
      return on_workload(by, id, name, false,
                         [op = request.activate()](Workload& w, auto& response) -> Result<void> {
                           BATON_ASSIGN(*response.mutable_run(), w.activate(op));
                           return {};
                         });
    case Op::kShadow:
      return on_workload(by, id, name, false,
                         [op = std::move(*request.mutable_shadow())](Workload& w, auto& response) {
                           return w.shadow(op, *response.mutable_shadow());
                         });
    case Op::kSignal:
      return on_workload(by, id, name, false,
                         [number = request.signal().signal()](Workload& w, auto&) { return w.signal(number); });
    case Op::kHello:
    case Op::OP_NOT_SET:
      break;
  }
  respond_error(by, id, make_error(Code::kInvalid, "warden", "an unknown request", "Is the agent of the same version?"));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::create(ServerOptions options) {
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  const ServerOptions& opt = impl->options;
  BATON_ASSIGN(RecordStore records, RecordStore::open(opt.state_dir));
  impl->records = std::make_unique<RecordStore>(std::move(records));
  const std::string lease_path = opt.state_dir + "/leases";
  BATON_ASSIGN(impl->leases, LeaseTable::open(lease_path, boot_id()));
  BATON_ASSIGN(impl->capture_buffer, CaptureBuffer::make(opt.capture_bytes));
  BATON_ASSIGN(impl->fill_buffer, SharedMemory::make("baton-fill", (opt.fill_bytes + 4095) / 4096 * 4096, false));
  for (const auto& name : backend::backend_names()) impl->backends[name] = backend::make_backend(name);
  if (!impl->backend(opt.backend)) {
    return make_error(Code::kInvalid, "warden", "there is no backend '" + opt.backend + "'");
  }
  impl->epoll = Fd::adopt(::epoll_create1(EPOLL_CLOEXEC));
  impl->wake = Fd::adopt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!impl->epoll || !impl->wake) return errno_error("epoll", "");
  impl->add_epoll(impl->wake.get(), kWakeTag);

  // Wardens that share a parent cgroup are told apart by their state directories.
  boost::crc_32_type crc;
  crc.process_bytes(impl->records->directory().data(), impl->records->directory().size());
  char folder[64];
  std::snprintf(folder, sizeof folder, "baton.workloads-%08x", crc.checksum());
  BATON_ASSIGN(Cgroup own, Cgroup::of(0));
  Surroundings& around = impl->around;
  around.cgroups = own.child(folder);
  around.records = impl->records.get();
  around.capture_buffer = impl->capture_buffer.get();
  around.fill_buffer = impl->fill_buffer.bytes();
  around.default_backend = opt.backend;
  around.launch = opt.launch;
  around.watchdog = &impl->watchdog;
  around.freeze_limit = opt.freeze_limit;
  around.boot_id = boot_id();
  around.leases = impl->leases.get();
  Impl* self = impl.get();
  around.backend = [self](const std::string& name) { return self->backend(name); };
  around.watch_exit = [self](int pidfd, std::uint64_t id) { self->add_epoll(pidfd, id, EPOLLIN | EPOLLONESHOT); };
  around.event = [self](const pb::WardenEvent& event) { self->send_event(event); };
  std::snprintf(folder, sizeof folder, "%08x", crc.checksum());
  auto opened = network::Switch::open(folder);
  if (opened) impl->frames = std::move(*opened);
  else spdlog::warn("no workload here can have an address: {}", opened.error().message());
  around.frames = impl->frames.get();
  around.address_holder = [self](std::uint64_t id, const pb::WorkloadSpec& spec) { return self->address_holder(id, spec); };
  around.post = [self](std::uint64_t id, std::function<void()> task) { return self->post_by_id(id, std::move(task)); };

  impl->enforcer = std::make_unique<LeaseEnforcer>(*impl->leases, [self](const std::string& name) {
    spdlog::warn("{}: its lease has run out; frozen", name);
    pb::WardenEvent event;
    event.set_workload(name);
    event.set_lease_expired(true);
    // Not from the lease's thread: an agent that does not read must not stop the clock.
    (void)self->pool_tasks.try_push([self, event] { self->send_event(event); });
  });
  if (opt.guard) impl->guard = std::make_unique<GuardKeeper>(*impl->leases, lease_path);

  for (auto& record : impl->records->load_all()) {
    auto workload = impl->find_or_make(record.workload());
    if (!workload) break;
    Workload* target = workload.get();
    workload->post([target, record = std::move(record)] { target->take_up(record); }, true);
  }
  for (bool busy_still = true; busy_still;) {   // an agent that lists must see them all
    busy_still = false;
    for (auto& [name, workload] : impl->workloads) busy_still = busy_still || !workload->idle();
    if (busy_still) ::usleep(1000);
  }
  impl->sweep();
  for (std::size_t i = 0; i < kPoolThreads; ++i) {
    impl->pool.emplace_back([self] {
      while (auto next = self->pool_tasks.pop()) (*next)();
    });
  }
  BATON_ASSIGN(impl->listener, UnixListener::bind(opt.socket_path, opt.agent_uid));
  impl->add_epoll(impl->listener.fd(), kListenerTag);
  return std::make_unique<Server>(std::move(impl));
}

Result<void> Server::serve() { return impl_->loop(); }

void Server::stop() noexcept {
  impl_->stopping.store(true);
  std::uint64_t one = 1;
  if (::write(impl_->wake.get(), &one, sizeof one) < 0) return;   // full: it is awake anyway
}

}  // namespace baton::warden
