#include "agent/warden/client.h"

#include <poll.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "agent/warden/shared_memory.h"
#include "agent/warden/wire.h"
#include "base/log.h"
#include "base/queue.h"

namespace baton::warden {
namespace {

using namespace std::chrono_literals;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kEventsMax = 1024;
constexpr auto kQuick = 15s;     // list, probe, thaw, …
constexpr auto kLease = 500ms;   // answered within a millisecond, if at all
constexpr auto kSlow = 120s;     // copying, hashing, launching, building

Error lost_error() {
  return make_error(Code::kUnreachable, "warden", "the connection to the warden was lost",
                    "The workloads run on; connect again once it has restarted.");
}

Error error_of(const pb::WardenError& error) {
  int code = error.code();
  if (code < static_cast<int>(Code::kFailed) || code > static_cast<int>(Code::kCancelled)) {
    code = static_cast<int>(Code::kFailed);
  }
  return Error{static_cast<Code>(code), error.sys_errno(), error.operation(), error.subject(), error.hint()};
}

// Which bytes of the fill buffer are free: first fit, merged on return.
class FillAllocator {
 public:
  explicit FillAllocator(std::size_t bytes) : size_(bytes) { free_[0] = bytes; }
  std::size_t size() const { return size_; }

  std::optional<std::uint64_t> take(std::size_t bytes) {
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->second < bytes) continue;
      std::uint64_t at = it->first;
      std::size_t rest = it->second - bytes;
      free_.erase(it);
      if (rest > 0) free_[at + bytes] = rest;
      return at;
    }
    return std::nullopt;
  }
  void give(std::uint64_t at, std::size_t bytes) {
    auto it = free_.emplace(at, bytes).first;
    if (auto next = std::next(it); next != free_.end() && at + it->second == next->first) {
      it->second += next->second;
      free_.erase(next);
    }
    if (it != free_.begin()) {
      auto before = std::prev(it);
      if (before->first + before->second == it->first) {
        before->second += it->second;
        free_.erase(it);
      }
    }
  }

 private:
  std::size_t size_;
  std::map<std::uint64_t, std::size_t> free_;
};

}  // namespace

// Shared by the client, its threads and every piece of buffer still in use.
struct Core {
  UnixSocket socket;
  std::mutex send_mutex;
  SharedMemory capture, fill;

  struct Pending {
    std::optional<pb::WardenResponse> response;
    std::condition_variable changed;
  };
  std::mutex mutex;
  std::map<std::uint64_t, Pending*> pending;
  bool lost = false;
  std::atomic<std::uint64_t> next_id{1};

  std::mutex fill_mutex;
  std::condition_variable fill_changed;
  std::optional<FillAllocator> fill_space;

  BoundedQueue<pb::WardenEvent> events{kEventsMax};

  Result<void> send(const pb::WardenRequest& request) {
    std::lock_guard lock(send_mutex);
    return send_message(socket, request);
  }

  void free_runs(const google::protobuf::RepeatedPtrField<pb::PageRun>& runs) {
    if (runs.empty()) return;
    pb::WardenRequest request;
    *request.mutable_free_buffer()->mutable_runs() = runs;
    (void)send(request).has_value();   // a lost connection frees everything anyway
  }

  bool in_capture_buffer(const google::protobuf::RepeatedPtrField<pb::PageRun>& runs) const {
    std::size_t size = capture.bytes().size();
    for (const auto& run : runs) {
      std::size_t length = std::size_t{run.count()} * kPage;
      if (run.offset() % kPage != 0 || run.offset() > size || length > size - run.offset()) return false;
    }
    return true;
  }

  Result<pb::WardenResponse> call(pb::WardenRequest request, std::chrono::nanoseconds timeout) {
    Pending slot;
    std::uint64_t id = next_id.fetch_add(1);
    request.set_id(id);
    {
      std::lock_guard lock(mutex);
      if (lost) return lost_error();
      pending[id] = &slot;
    }
    auto sent = send(request);
    std::unique_lock lock(mutex);
    if (!sent) {
      pending.erase(id);
      if (sent.error().code == Code::kUnreachable) return lost_error();
      return sent.error();
    }
    slot.changed.wait_for(lock, timeout, [&] { return slot.response || lost; });
    pending.erase(id);
    if (!slot.response) {
      if (lost) return lost_error();
      return make_error(Code::kTimedOut, "warden", "no answer in time; it may still happen",
                        "List the workloads before you try again.");
    }
    lock.unlock();
    if (slot.response->has_error()) return error_of(slot.response->error());
    return std::move(*slot.response);
  }

  void read_all() {
    for (;;) {
      pb::WardenResponse response;
      std::vector<Fd> fds;
      auto got = receive_message(socket, response, fds);
      if (!got) spdlog::error("warden connection: {}", got.error().message());
      if (!got || !*got) break;
      if (response.has_event()) {
        events.push(std::move(*response.mutable_event()));
        continue;
      }
      std::unique_lock lock(mutex);
      auto it = pending.find(response.id());
      if (it != pending.end()) {
        it->second->response = std::move(response);
        it->second->changed.notify_all();
        continue;
      }
      lock.unlock();
      // Nobody waits any more: its pages must not stay out.
      if (response.has_round()) free_runs(response.round().runs());
      if (response.has_capture()) free_runs(response.capture().runs());
    }
    {
      std::lock_guard lock(mutex);
      lost = true;
      for (auto& [id, slot] : pending) slot->changed.notify_all();
    }
    {
      std::lock_guard lock(fill_mutex);
      fill_changed.notify_all();
    }
    socket.shutdown();
    events.close();
  }

  bool is_lost() {
    std::lock_guard lock(mutex);
    return lost;
  }
};

struct CapturedPages::Impl {
  std::shared_ptr<Core> core;
  google::protobuf::RepeatedPtrField<pb::PageRun> given;
  std::vector<pb::PageRun> runs;
  ~Impl() {
    if (core) core->free_runs(given);
  }
};

CapturedPages::CapturedPages() = default;
CapturedPages::CapturedPages(CapturedPages&&) noexcept = default;
CapturedPages& CapturedPages::operator=(CapturedPages&&) noexcept = default;
CapturedPages::~CapturedPages() = default;
CapturedPages::CapturedPages(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

const std::vector<pb::PageRun>& CapturedPages::runs() const {
  static const std::vector<pb::PageRun> none;
  return impl_ ? impl_->runs : none;
}

const std::byte* CapturedPages::data(const pb::PageRun& run) const {
  return impl_->core->capture.bytes().data() + run.offset();
}

struct FillSpace::Impl {
  std::shared_ptr<Core> core;
  std::uint64_t at = 0;
  std::size_t taken = 0, asked = 0;
  ~Impl() {
    if (!core || taken == 0) return;
    std::lock_guard lock(core->fill_mutex);
    core->fill_space->give(at, taken);
    core->fill_changed.notify_all();
  }
};

FillSpace::FillSpace() = default;
FillSpace::FillSpace(FillSpace&&) noexcept = default;
FillSpace& FillSpace::operator=(FillSpace&&) noexcept = default;
FillSpace::~FillSpace() = default;
FillSpace::FillSpace(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

std::span<std::byte> FillSpace::bytes() const {
  if (!impl_) return {};
  return impl_->core->fill.bytes().subspan(impl_->at, impl_->asked);
}
std::uint64_t FillSpace::offset() const { return impl_ ? impl_->at : 0; }

struct WardenClient::Impl {
  std::shared_ptr<Core> core;
  std::thread reader, dispatcher;
  std::shared_ptr<std::atomic<bool>> closing = std::make_shared<std::atomic<bool>>(false);

  ~Impl() {
    closing->store(true);
    core->socket.shutdown();
    // A handler may destroy its own client.
    for (std::thread* thread : {&reader, &dispatcher}) {
      if (!thread->joinable()) continue;
      if (thread->get_id() == std::this_thread::get_id()) {
        thread->detach();
      } else {
        thread->join();
      }
    }
  }

  Result<pb::WardenResponse> call(pb::WardenRequest request, std::chrono::nanoseconds timeout) {
    return core->call(std::move(request), timeout);
  }
  Result<void> call_void(pb::WardenRequest request, std::chrono::nanoseconds timeout) {
    BATON_TRY(core->call(std::move(request), timeout));
    return {};
  }
  Result<CapturedPages> pages_of(google::protobuf::RepeatedPtrField<pb::PageRun>* runs) {
    if (!core->in_capture_buffer(*runs)) {
      return make_error(Code::kCorrupt, "warden", "captured pages outside the capture buffer");
    }
    auto impl = std::make_unique<CapturedPages::Impl>();
    impl->runs.assign(runs->begin(), runs->end());
    impl->given.Swap(runs);
    impl->core = core;
    return CapturedPages(std::move(impl));
  }
};

WardenClient::WardenClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
WardenClient::~WardenClient() = default;

Result<std::unique_ptr<WardenClient>> WardenClient::connect(const std::string& socket_path,
                                                            EventHandler on_event,
                                                            std::function<void()> on_lost) {
  auto core = std::make_shared<Core>();
  auto connected = UnixSocket::connect(socket_path);
  if (!connected) {
    Error error = connected.error();
    if (error.code == Code::kNotFound) error.code = Code::kUnreachable;
    error.hint = "Is baton-warden running on this node?";
    return error;
  }
  core->socket = std::move(*connected);
  core->socket.grow_buffers(kInlineMax * 8);
  pb::WardenRequest hello;
  hello.mutable_hello()->set_version(kProtocolVersion);
  // Refused at once: the reason is there to be read.
  auto greeted = send_message(core->socket, hello);
  if (!greeted && greeted.error().code != Code::kUnreachable) return greeted.error();
  pollfd entry{core->socket.fd(), POLLIN, 0};
  if (::poll(&entry, 1, 10000) == 0) {
    return make_error(Code::kTimedOut, "warden", socket_path + ": no answer to hello within 10 s");
  }
  pb::WardenResponse answer;
  std::vector<Fd> fds;
  BATON_ASSIGN(bool open, receive_message(core->socket, answer, fds));
  if (!open) {
    return make_error(Code::kUnreachable, "warden", socket_path + ": closed at hello",
                      "Does this user run as the warden's --agent-uid?");
  }
  if (answer.has_error()) return error_of(answer.error());
  if (!answer.has_hello() || answer.hello().version() != kProtocolVersion || fds.size() != 2) {
    return make_error(Code::kUnsupported, "warden", socket_path + ": speaks another version",
                      "Install the same version of agent and warden.");
  }
  BATON_ASSIGN(core->capture, SharedMemory::map(std::move(fds[0]), answer.hello().capture_bytes(), false));
  BATON_ASSIGN(core->fill, SharedMemory::map(std::move(fds[1]), answer.hello().fill_bytes(), true));
  core->fill_space.emplace(answer.hello().fill_bytes());

  auto impl = std::make_unique<Impl>();
  impl->core = core;
  impl->reader = std::thread([core] { core->read_all(); });
  impl->dispatcher = std::thread([core, closing = impl->closing, event = std::move(on_event),
                                  gone = std::move(on_lost)] {
    while (auto next = core->events.pop()) {
      if (event && !closing->load()) event(*next);
    }
    if (gone && !closing->load()) gone();
  });
  return std::make_unique<WardenClient>(std::move(impl));
}

Result<pb::NodeFacts> WardenClient::probe() {
  pb::WardenRequest request;
  request.mutable_probe();
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  return std::move(*response.mutable_probe());
}

Result<pb::InspectResponse> WardenClient::inspect(const pb::InspectRequest& inspect) {
  pb::WardenRequest request;
  *request.mutable_inspect() = inspect;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  return std::move(*response.mutable_inspect());
}

Result<pb::WorkloadProcess> WardenClient::run(const pb::WorkloadSpec& spec) {
  pb::WardenRequest request;
  *request.mutable_run()->mutable_spec() = spec;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  return std::move(*response.mutable_run());
}

Result<pb::WorkloadProcess> WardenClient::protect(const pb::WorkloadSpec& spec) {
  pb::WardenRequest request;
  *request.mutable_protect()->mutable_spec() = spec;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  return std::move(*response.mutable_run());
}

Result<std::vector<pb::WorkloadProcess>> WardenClient::list() {
  pb::WardenRequest request;
  request.mutable_list();
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kQuick));
  return std::vector<pb::WorkloadProcess>(response.list().workloads().begin(), response.list().workloads().end());
}

Result<Round> WardenClient::round(const pb::RoundRequest& round) {
  pb::WardenRequest request;
  *request.mutable_round() = round;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  Round out;
  BATON_ASSIGN(out.pages, impl_->pages_of(response.mutable_round()->mutable_runs()));
  out.info.Swap(response.mutable_round());
  return out;
}

Result<Capture> WardenClient::capture(const pb::CaptureRequest& capture) {
  pb::WardenRequest request;
  *request.mutable_capture() = capture;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  Capture out;
  BATON_ASSIGN(out.pages, impl_->pages_of(response.mutable_capture()->mutable_runs()));
  out.info.Swap(response.mutable_capture());
  return out;
}

Result<void> WardenClient::thaw(const std::string& workload) {
  pb::WardenRequest request;
  request.mutable_thaw()->set_workload(workload);
  return impl_->call_void(std::move(request), kQuick);
}

Result<pb::ExecResponse> WardenClient::exec(const pb::ExecRequest& exec) {
  pb::WardenRequest request;
  *request.mutable_exec() = exec;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  return std::move(*response.mutable_exec());
}

Result<void> WardenClient::release_output(const std::string& workload, std::uint64_t epoch) {
  pb::WardenRequest request;
  request.mutable_release_output()->set_workload(workload);
  request.mutable_release_output()->set_epoch(epoch);
  return impl_->call_void(std::move(request), kQuick);
}

Result<void> WardenClient::hold(const std::string& workload) {
  pb::WardenRequest request;
  request.mutable_hold()->set_workload(workload);
  return impl_->call_void(std::move(request), kQuick);
}

Result<void> WardenClient::stop(const pb::StopRequest& stop) {
  pb::WardenRequest request;
  *request.mutable_stop() = stop;
  std::chrono::microseconds grace(std::min<std::uint64_t>(stop.grace_us(), 3'600'000'000u));
  return impl_->call_void(std::move(request), kSlow + grace);
}

Result<void> WardenClient::release(const std::string& workload) {
  pb::WardenRequest request;
  request.mutable_release()->set_workload(workload);
  return impl_->call_void(std::move(request), kQuick);
}

Result<void> WardenClient::build(const pb::BuildRequest& build) {
  pb::WardenRequest request;
  *request.mutable_build() = build;
  return impl_->call_void(std::move(request), kSlow);
}

Result<FillSpace> WardenClient::fill_space(std::size_t bytes) {
  Core& core = *impl_->core;
  std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
  if (bytes == 0 || rounded < bytes || rounded > core.fill.bytes().size()) {
    return make_error(Code::kInvalid, "fill buffer", std::to_string(bytes) + " bytes asked, it has " +
                                                         std::to_string(core.fill.bytes().size()));
  }
  std::unique_lock lock(core.fill_mutex);
  for (;;) {
    if (core.is_lost()) return lost_error();
    if (auto at = core.fill_space->take(rounded)) {
      auto impl = std::make_unique<FillSpace::Impl>();
      impl->core = impl_->core;
      impl->at = *at;
      impl->taken = rounded;
      impl->asked = bytes;
      return FillSpace(std::move(impl));
    }
    core.fill_changed.wait(lock);
  }
}

Result<void> WardenClient::fill(const pb::FillRequest& fill) {
  pb::WardenRequest request;
  *request.mutable_fill() = fill;
  return impl_->call_void(std::move(request), kSlow);
}

Result<pb::ShadowResponse> WardenClient::shadow(const pb::ShadowRequest& shadow) {
  pb::WardenRequest request;
  *request.mutable_shadow() = shadow;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  return std::move(*response.mutable_shadow());
}

Result<pb::WorkloadProcess> WardenClient::activate(const pb::ActivateRequest& activate) {
  pb::WardenRequest request;
  *request.mutable_activate() = activate;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  return std::move(*response.mutable_run());
}

Result<pb::LogsResponse> WardenClient::logs(const pb::LogsRequest& logs) {
  pb::WardenRequest request;
  *request.mutable_logs() = logs;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kQuick));
  return std::move(*response.mutable_logs());
}

Result<pb::ProveFilesResponse> WardenClient::prove_files(const pb::ProveFilesRequest& prove) {
  pb::WardenRequest request;
  *request.mutable_prove_files() = prove;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kSlow));
  return std::move(*response.mutable_prove_files());
}

Result<pb::ReadFileResponse> WardenClient::read_file(const pb::ReadFileRequest& read) {
  pb::WardenRequest request;
  *request.mutable_read_file() = read;
  BATON_ASSIGN(auto response, impl_->call(std::move(request), kQuick));
  return std::move(*response.mutable_read_file());
}

Result<void> WardenClient::write_file(const pb::WriteFileRequest& write) {
  pb::WardenRequest request;
  *request.mutable_write_file() = write;
  return impl_->call_void(std::move(request), kSlow);
}

Result<void> WardenClient::signal(const std::string& workload, int signal) {
  pb::WardenRequest request;
  request.mutable_signal()->set_workload(workload);
  request.mutable_signal()->set_signal(signal);
  return impl_->call_void(std::move(request), kQuick);
}

Result<void> WardenClient::prefer_thread(pid_t tid) {
  pb::WardenRequest request;
  request.mutable_prefer_thread()->set_tid(tid);
  return impl_->call_void(std::move(request), kQuick);
}

Result<pb::LeaseResponse> WardenClient::lease(const pb::LeaseRequest& lease) {
  pb::WardenRequest request;
  *request.mutable_lease() = lease;
  BATON_ASSIGN(auto response, impl_->core->call(std::move(request), kLease));
  return response.lease();
}

}  // namespace baton::warden
