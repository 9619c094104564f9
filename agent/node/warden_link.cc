#include "agent/node/warden_link.h"

#include <chrono>
#include <utility>

#include "base/log.h"

namespace baton::node {
namespace {

constexpr std::chrono::milliseconds kFirstBackoff{50};
constexpr std::chrono::milliseconds kMaxBackoff{200};

// Pages keep their client alive: the buffer is its mapping.
class LinkBatch final : public CapturedBatch {
 public:
  LinkBatch(std::shared_ptr<warden::WardenClient> client, warden::CapturedPages pages)
      : client_(std::move(client)), pages_(std::move(pages)) {}
  const std::vector<pb::PageRun>& runs() const override { return pages_.runs(); }
  const std::byte* data(const pb::PageRun& run) const override { return pages_.data(run); }

 private:
  std::shared_ptr<warden::WardenClient> client_;
  warden::CapturedPages pages_;
};

class LinkFill final : public FillBuffer {
 public:
  LinkFill(std::shared_ptr<warden::WardenClient> client, warden::FillSpace space)
      : client_(std::move(client)), space_(std::move(space)) {}
  std::span<std::byte> bytes() override { return space_.bytes(); }
  std::uint64_t offset() const override { return space_.offset(); }

 private:
  std::shared_ptr<warden::WardenClient> client_;
  warden::FillSpace space_;
};

}  // namespace

WardenLink::WardenLink(std::string socket_path,
                       std::function<void(const pb::WardenEvent&)> on_event,
                       std::function<void()> on_connected)
    : socket_path_(std::move(socket_path)),
      on_event_(std::move(on_event)),
      on_connected_(std::move(on_connected)) {}

void WardenLink::start() {
  thread_ = std::thread([this] { connect_loop(); });
}

WardenLink::~WardenLink() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool WardenLink::connected() const {
  std::lock_guard lock(mutex_);
  return client_ != nullptr && !lost_;
}

void WardenLink::connect_loop() {
  auto backoff = kFirstBackoff;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (client_ && !lost_) {
      changed_.wait(lock, [&] { return stopping_ || lost_; });
      continue;
    }
    ClientPtr old = std::move(client_);
    client_ = nullptr;
    lost_ = false;
    lock.unlock();
    old.reset();
    auto made = warden::WardenClient::connect(socket_path_, on_event_, [this] {
      std::lock_guard lost_lock(mutex_);
      lost_ = true;
      changed_.notify_all();
    });
    if (made) {
      spdlog::info("connected to the warden at {}", socket_path_);
      backoff = kFirstBackoff;
      {
        std::lock_guard set_lock(mutex_);
        ++epoch_;
        client_ = ClientPtr(std::move(*made));
      }
      on_connected_();
      lock.lock();
    } else {
      if (backoff == kFirstBackoff) spdlog::warn("warden: {}; trying again until it answers", made.error().message());
      lock.lock();
      changed_.wait_for(lock, backoff, [&] { return stopping_; });
      backoff = std::min(backoff * 2, kMaxBackoff);
    }
  }
}

Result<WardenLink::ClientPtr> WardenLink::client() const {
  std::lock_guard lock(mutex_);
  if (!client_ || lost_) {
    return make_error(Code::kUnreachable, "warden", socket_path_ + ": not connected",
                      "Is baton-warden running? The agent keeps trying.");
  }
  return ClientPtr(client_);
}

Result<pb::NodeFacts> WardenLink::probe() {
  BATON_ASSIGN(auto c, client());
  return c->probe();
}
Result<pb::InspectResponse> WardenLink::inspect(const pb::InspectRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->inspect(request);
}
Result<pb::WorkloadProcess> WardenLink::run(const pb::WorkloadSpec& spec) {
  BATON_ASSIGN(auto c, client());
  return c->run(spec);
}
Result<pb::WorkloadProcess> WardenLink::protect(const pb::WorkloadSpec& spec) {
  BATON_ASSIGN(auto c, client());
  return c->protect(spec);
}
Result<std::vector<pb::WorkloadProcess>> WardenLink::list() {
  BATON_ASSIGN(auto c, client());
  return c->list();
}
Result<Round> WardenLink::round(const pb::RoundRequest& request) {
  BATON_ASSIGN(auto c, client());
  BATON_ASSIGN(auto r, c->round(request));
  return Round{std::move(r.info), std::make_unique<LinkBatch>(c, std::move(r.pages))};
}
Result<Capture> WardenLink::capture(const pb::CaptureRequest& request) {
  BATON_ASSIGN(auto c, client());
  BATON_ASSIGN(auto r, c->capture(request));
  return Capture{std::move(r.info), std::make_unique<LinkBatch>(c, std::move(r.pages))};
}
Result<bool> WardenLink::lease(const pb::LeaseRequest& request) {
  BATON_ASSIGN(auto c, client());
  BATON_ASSIGN(auto answer, c->lease(request));
  return answer.was_frozen();
}
Result<void> WardenLink::prefer_thread(pid_t tid) {
  BATON_ASSIGN(auto c, client());
  return c->prefer_thread(tid);
}
Result<pb::ExecResponse> WardenLink::exec(const pb::ExecRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->exec(request);
}
Result<void> WardenLink::release_output(const std::string& workload, std::uint64_t epoch) {
  BATON_ASSIGN(auto c, client());
  return c->release_output(workload, epoch);
}
Result<void> WardenLink::thaw(const std::string& workload) {
  BATON_ASSIGN(auto c, client());
  return c->thaw(workload);
}
Result<void> WardenLink::hold(const std::string& workload) {
  BATON_ASSIGN(auto c, client());
  return c->hold(workload);
}
Result<void> WardenLink::stop(const std::string& workload, std::uint64_t grace_us, bool kill) {
  BATON_ASSIGN(auto c, client());
  pb::StopRequest request;
  request.set_workload(workload);
  request.set_grace_us(grace_us);
  request.set_kill(kill);
  return c->stop(request);
}
Result<void> WardenLink::release(const std::string& workload) {
  BATON_ASSIGN(auto c, client());
  return c->release(workload);
}
Result<void> WardenLink::build(const pb::BuildRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->build(request);
}
Result<std::unique_ptr<FillBuffer>> WardenLink::fill_space(std::size_t bytes) {
  BATON_ASSIGN(auto c, client());
  BATON_ASSIGN(auto space, c->fill_space(bytes));
  return std::unique_ptr<FillBuffer>(std::make_unique<LinkFill>(c, std::move(space)));
}
Result<void> WardenLink::fill(const pb::FillRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->fill(request);
}
Result<pb::ShadowResponse> WardenLink::shadow(const pb::ShadowRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->shadow(request);
}
Result<pb::WorkloadProcess> WardenLink::activate(const pb::ActivateRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->activate(request);
}
Result<pb::LogsResponse> WardenLink::logs(const pb::LogsRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->logs(request);
}
Result<pb::ProveFilesResponse> WardenLink::prove_files(const pb::ProveFilesRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->prove_files(request);
}
Result<pb::ReadFileResponse> WardenLink::read_file(const pb::ReadFileRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->read_file(request);
}
Result<void> WardenLink::write_file(const pb::WriteFileRequest& request) {
  BATON_ASSIGN(auto c, client());
  return c->write_file(request);
}

}  // namespace baton::node
