// Coordinator: what happens by itself. Nodes fall silent, nodes come back, and operations
// that an earlier run of this program began are brought to an end.
//
// An operation whose record names another process was under way when that process ended.
// Nothing is repeated and nothing is guessed: the owner record says who may run the
// workload, and the reports of the nodes say who does.
//
//   run      the node reports the workload: it runs, done. The node reports without it:
//            it never started; the name is given back and the owner record retired.
//   migrate  the owner record moved on: done, by the new owner. It did not: over as soon as
//            the source reports the workload in another state than migrating, or is gone.
//   restore  the target reports the workload: done. It reports without it: over; the
//            workload stays the target's, and can be restored again.
//   delete   done to the end: stopped where it runs, dropped everywhere.
#include <algorithm>
#include <set>

#include "base/log.h"
#include "coordinator/coordinator.h"

namespace baton::coordinator {
namespace {
constexpr std::chrono::milliseconds kWatchInterval{250};
}

void Coordinator::watch(std::stop_token stop) {
  int ticks = 0;
  while (!stop.stop_requested()) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kWatchInterval, [&] { return stopping_; });
      if (stopping_) return;
    }
    bool changed = false;
    std::vector<std::string> gone;
    for (const auto& view : membership_.views()) {
      bool was = false;
      {
        std::lock_guard lock(mutex_);
        was = unreachable_.contains(view.name);
        if (view.declared_unreachable && !was) unreachable_.insert(view.name);
        if (view.reachable && was) unreachable_.erase(view.name);
      }
      if (view.declared_unreachable && !was) {
        changed = true;
        log_event(make_event("node", "", view.name, view.name + " is unreachable"));
        gone.push_back(view.name);
      } else if (view.reachable && was) {
        changed = true;
        log_event(make_event("node", "", view.name, view.name + " is reachable again"));
      }
    }
    resolve_operations();
    if (!changed && ++ticks % 8 != 0) continue;
    // Workloads that lack a standby take one as soon as there is a fit node.
    auto records = store_.list<pb::WorkloadRecord>();
    if (!records) continue;
    std::set<std::string> names;
    for (const auto& record : *records) {
      names.insert(record.value.spec().name());
      auto one = known(record.value.spec().name());
      if (!one || one->operation.version != 0) continue;
      fail_back(*one);
      // So does one whose standby has fallen silent.
      const auto standbys = standbys_of(*one);
      const bool lacking = std::any_of(gone.begin(), gone.end(), [&](const std::string& node) {
        return std::count(standbys.begin(), standbys.end(), node) > 0;
      });
      if (lacking) {
        settle_standbys(record.value.spec().name(), true);
      } else if (standbys.size() < record.value.wanted_standbys()) {
        settle_standbys(record.value.spec().name(), false);
      }
    }
    forget_homes(names);
  }
}

void Coordinator::resolve_operations() {
  auto operations = store_.list<pb::OperationRecord>();
  if (!operations) return;
  for (const auto& operation : *operations) {
    if (ours(operation.value)) continue;
    auto one = known(operation.value.workload());
    if (one) {
      resolve_operation(*one);
    } else if (one.error().code == Code::kNotFound) {
      (void)finish(operation.value.workload());
    }
  }
}

void Coordinator::resolve_operation(const Known& one) {
  const auto& operation = one.operation.value;
  const std::string name = operation.workload();
  auto state_at = [&](const std::string& node) -> std::optional<std::string> {
    auto view = membership_.view(node);
    if (!view || !view->reachable) return std::nullopt;  // not heard of (yet)
    auto found = view->statuses.find(name);
    return found == view->statuses.end() ? std::string() : found->second.state();
  };
  auto gone = [&](const std::string& node) {
    auto view = membership_.view(node);
    return !view || view->declared_unreachable;
  };
  auto end = [&](const std::string& text) {
    log_event(make_event(operation.kind(), name, one.owner.owner(),
                         "after a restart of the coordinator: " + text));
    (void)finish(name);
  };

  if (operation.kind() == "run") {
    auto state = state_at(operation.to());
    if (state && !state->empty()) {
      end("running on " + operation.to());
    } else if ((state && state->empty()) || gone(operation.to())) {
      undo_run(name, one.record.value.spec().origin() == pb::ORIGIN_PROTECT,
               "the coordinator was restarted meanwhile");
    }
  } else if (operation.kind() == "migrate") {
    // A source that took it back has raised the incarnation too: the name decides.
    if (one.owner.incarnation() > operation.incarnation() &&
        one.owner.owner() != operation.from()) {
      settle_standbys(name, true);
      end("moved to " + one.owner.owner());
    } else {
      auto state = state_at(operation.from());
      if ((state && *state != "migrating") || gone(operation.from())) {
        end("not moved, " + operation.from() + " still owns it");
      }
    }
  } else if (operation.kind() == "restore") {
    if (one.owner.incarnation() == operation.incarnation()) {
      end("not begun");
      return;
    }
    auto state = state_at(one.owner.owner());
    if (state && !state->empty()) {
      settle_standbys(name, true);
      end("running on " + one.owner.owner());
    } else if ((state && state->empty()) || gone(one.owner.owner())) {
      end("not running, restore it again");
    }
  } else if (operation.kind() == "delete") {
    // Taken over: nobody else finishes it.
    pb::DeleteRequest request;
    request.set_name(name);
    request.set_stop_program(operation.seq() == 0);
    auto view = membership_.view(one.owner.owner());
    if (view && !view->reachable && !view->declared_unreachable) return;
    (void)finish(name);
    background([this, request](std::stop_token) {
      auto done = remove(request, "coordinator");
      if (!done) spdlog::error("{}", done.error().message());
    });
  }
}

}  // namespace baton::coordinator
