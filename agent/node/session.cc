#include "agent/node/session.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "proto/coordinator.grpc.pb.h"
#include "transport/rpc.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;
constexpr std::chrono::microseconds kDefaultHeartbeat = 200ms;
constexpr auto kMaxBackoff = 2000ms;
constexpr auto kFactsWait = 3000ms;

}  // namespace

Session::Session(Node& node, std::string coordinator_address, const transport::TlsFiles& tls)
    : node_(node),
      address_(std::move(coordinator_address)),
      channel_(transport::make_channel(address_, tls, transport::Role::kCoordinator)),
      thread_([this] { loop(); }) {}

Session::~Session() {
  stopping_ = true;
  {
    std::lock_guard lock(mutex_);
    if (context_) context_->TryCancel();
  }
  node_.report_soon();
  thread_.join();
}

void Session::loop() {
  auto backoff = 100ms;
  while (!stopping_) {
    const auto begin = std::chrono::steady_clock::now();
    run_once();
    if (stopping_) return;
    if (std::chrono::steady_clock::now() - begin > 5s) backoff = 100ms;
    for (auto waited = 0ms; waited < backoff && !stopping_; waited += 50ms) std::this_thread::sleep_for(50ms);
    backoff = std::min<std::chrono::milliseconds>(backoff * 2, kMaxBackoff);
  }
}

void Session::run_once() {
  // The first message says what this node is, which the warden knows: given a moment to come
  // up; without it the node registers all the same, and again when it is there.
  for (auto waited = 0ms; waited < kFactsWait && !stopping_ && !node_.facts(); waited += 50ms) {
    std::this_thread::sleep_for(50ms);
  }
  const bool complete = node_.facts().has_value();
  auto stub = pb::Coordinator::NewStub(channel_);
  grpc::ClientContext context;
  {
    std::lock_guard lock(mutex_);
    context_ = &context;
  }
  auto stream = stub->Session(&context);
  std::atomic<bool> open{true};
  std::atomic<std::int64_t> heartbeat_us{kDefaultHeartbeat.count()};
  bool greeted = false;
  if (stream->Write(node_.report(true))) {
    std::jthread reader([&] {
      pb::NodeOrder order;
      while (stream->Read(&order)) {
        if (!std::exchange(greeted, true)) spdlog::info("registered with the coordinator at {}", address_);
        if (order.heartbeat_us() > 0) {
          heartbeat_us = std::clamp<std::int64_t>(static_cast<std::int64_t>(order.heartbeat_us()), 10'000, 10'000'000);
        }
        node_.obey(order);
        order.Clear();
      }
      open = false;
      node_.report_soon();
    });
    while (open && !stopping_) {
      node_.wait_report(std::chrono::microseconds(heartbeat_us));
      if (!complete && node_.facts()) break;
      if (!open || stopping_ || !stream->Write(node_.report(false))) break;
    }
    stream->WritesDone();
    context.TryCancel();
  }
  auto status = stream->Finish();
  {
    std::lock_guard lock(mutex_);
    context_ = nullptr;
  }
  if (!stopping_) {
    spdlog::warn("the session with the coordinator ended: {}",
                 transport::from_status(status, "session", "coordinator " + address_).message());
  }
}

}  // namespace baton::node
