// The network of a workload that has addresses of its own: its port, over the stations of its
// life. Without addresses all of this does nothing.
#include "agent/warden/workload.h"
#include "base/log.h"

namespace baton::warden {
namespace {

using namespace std::chrono_literals;
// A neighbour, or a switch on the way, may have missed the first announcement.
constexpr std::chrono::milliseconds kAnnounceAgain[] = {50ms, 250ms, 1s};

}  // namespace

Result<void> Workload::plan_network(bool ask_neighbours) {
  if (record_.spec().addresses_size() == 0) return {};
  if (!around_.frames) {
    return make_error(Code::kUnsupported, "address", "this node's warden cannot set up networks",
                      "It needs CAP_NET_ADMIN; its log says what failed.");
  }
  publish();   // two that begin at once see each other
  std::string holder = around_.address_holder(id_, record_.spec());
  if (!holder.empty()) {
    return make_error(Code::kConflict, "address", "workload " + holder + " on this node has an address of " + name_,
                      "Choose another address, or end that workload.");
  }
  BATON_ASSIGN(auto planned, network::Port::plan(*around_.frames, record_.spec()));
  {
    std::lock_guard lock(hold_mutex_);
    port_ = std::move(planned);
  }
  return ask_neighbours ? port_->check_free() : Result<void>();
}

// For a build beside the one that is there: a port under another name, until it takes its place.
Result<void> Workload::plan_network_beside() {
  if (!port_) return {};
  BATON_ASSIGN(beside_port_, network::Port::plan(*around_.frames, record_.spec(), !port_->is_other()));
  return {};
}

void Workload::take_network_beside() {
  if (!port_) return;
  port_->discard();
  std::lock_guard lock(hold_mutex_);
  port_ = std::move(beside_port_);
}

Result<void> Workload::open_gate(std::uint64_t until_boot_ns) {
  std::lock_guard lock(hold_mutex_);
  if (!port_) return {};
  port_->leased();
  if (until_boot_ns == 0) return around_.frames->open_without_end(port_->mac());
  return around_.frames->open_until(port_->mac(), BootTime(static_cast<std::int64_t>(until_boot_ns)));
}

Result<void> Workload::attach_network() {
  if (!port_ || port_->attached()) return {};
  BATON_TRY(port_->attach());
  make_hold();
  if (record_.spec().output_commit() && !hold_) {
    detach_network();
    return make_error(Code::kUnsupported, "output commit", "nothing can be held back on this node", "The warden's log says why.");
  }
  for (auto delay : kAnnounceAgain) {
    around_.watchdog->after(delay, [post = around_.post, id = id_, this] {
      post(id, [this] {
        if (!port_) return;
        if (auto told = port_->announce_again(); !told) spdlog::warn("{}: {}", name_, told.error().message());
      });
    });
  }
  return {};
}

// Without it the workload runs all the same, and its connections are refused by name.
void Workload::make_hold() {
  if (hold_ || !port_) return;
  auto made = network::Hold::make(*port_, [event = around_.event, name = name_] {
    pb::WardenEvent waits;
    waits.set_workload(name);
    waits.set_output_waits(true);
    event(waits);
  });
  std::lock_guard lock(hold_mutex_);
  if (made) hold_ = std::move(*made);
  else spdlog::warn("{}: its TCP connections cannot be taken along: {}", name_, made.error().message());
}

Result<void> Workload::release_output(std::uint64_t epoch) {
  std::lock_guard lock(hold_mutex_);
  if (!hold_ || !hold_->output()) return make_error(Code::kNotFound, "release output", name_ + " holds nothing back");
  hold_->output()->release(epoch);
  return {};
}

void Workload::detach_network() {
  if (!port_) return;
  if (auto gone = port_->detach(); !gone) spdlog::error("{}: its address stays here: {}", name_, gone.error().message());
}

void Workload::take_up_network() {
  if (record_.spec().addresses_size() == 0 || !around_.frames) return;
  const auto member = static_cast<pid_t>(record_.keeper_pid() != 0 ? record_.keeper_pid() : record_.root_pid());
  Result<void> taken;
  for (bool other : {false, true}) {
    auto port = network::Port::plan(*around_.frames, record_.spec(), other);
    taken = port ? (*port)->take_up(member) : Result<void>(port.error());
    if (!taken) continue;
    {
      std::lock_guard lock(hold_mutex_);
      port_ = std::move(*port);
    }
    return make_hold();
  }
  spdlog::error("{}: {}", name_, taken.error().message());
}

void Workload::remove_network() {
  if (beside_port_) beside_port_->discard();
  beside_port_.reset();
  {
    std::lock_guard lock(hold_mutex_);
    hold_.reset();
  }
  if (!port_) return;
  port_->remove();
  std::lock_guard lock(hold_mutex_);
  port_.reset();
}

}  // namespace baton::warden
