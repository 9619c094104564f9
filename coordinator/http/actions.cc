// What an operator changes over HTTP. A movement is answered with 202 and its number as soon as
// it has begun; what the coordinator refuses at once is answered as an error.
#include <condition_variable>

#include "coordinator/cli/render.h"
#include "coordinator/http/json.h"
#include "coordinator/http/routes.h"
#include "coordinator/request_text.h"

namespace baton::coordinator::http {
namespace {

constexpr std::uint64_t kCheckpointTimeoutUs = 30'000'000;

struct Key {
  const char* name;
  Json::value_t type;
};

// The body as an object that holds no other keys than these, each of its type.
Result<Json> read_body(const Request& request, std::initializer_list<Key> keys) {
  const Json body = request.body.empty() ? Json::object() : Json::parse(request.body, nullptr, false);
  if (!body.is_object()) {
    return make_error(Code::kInvalid, "read the request", "the body is not a JSON object");
  }
  for (const auto& [name, value] : body.items()) {
    const Key* key = nullptr;
    for (const Key& one : keys) {
      if (name == one.name) key = &one;
    }
    if (!key) {
      return make_error(Code::kInvalid, "read the request", "unknown key '" + name.substr(0, 40) + "'",
                        "See docs/api.md.");
    }
    if (value.type() != key->type) {
      return make_error(Code::kInvalid, "read the request", "'" + name + "' is of another type",
                        "See docs/api.md.");
    }
  }
  return body;
}

}  // namespace

Response Routes::checkpoint_now(const Request& request, const Caller& caller,
                                const std::string& name) {
  if (auto body = read_body(request, {}); !body) return error_response(body.error());
  pb::CheckpointNowRequest ask;
  ask.set_name(name);
  ask.set_timeout_us(kCheckpointTimeoutUs);
  auto entry = audit_entry(request, caller, "Checkpoint");
  entry.set_target(name);
  auto info = audited(&parts_.audit, entry, [&] { return parts_.coordinator.checkpoint(ask); });
  return info ? json_response(cli::checkpoint_json(*info)) : error_response(info.error());
}

Response Routes::abort(const Request& request, const Caller& caller, const std::string& name) {
  if (auto body = read_body(request, {}); !body) return error_response(body.error());
  auto entry = audit_entry(request, caller, "AbortMigration");
  entry.set_target(name);
  auto done = audited(&parts_.audit, entry, [&] { return parts_.coordinator.abort_migration(name); });
  return done ? json_response(Json::object()) : error_response(done.error());
}

Response Routes::begin_movement(
    const pb::AuditEntry& entry, const std::string& kind, const std::string& name,
    const std::string& to, const std::string& who,
    std::function<Result<void>(std::uint64_t, const std::function<void()>&)> work) {
  auto known = parts_.coordinator.show_workload(name);
  if (!known) return error_response(known.error());
  struct First {
    std::mutex mutex;
    std::condition_variable changed;
    bool begun = false;
    std::optional<Result<void>> outcome;
  };
  auto first = std::make_shared<First>();
  auto id = parts_.movements.run(
      kind, name, known->ownership().owner(), to, who,
      [this, entry, first, work = std::move(work)](std::uint64_t movement) {
        auto outcome = audited(&parts_.audit, entry, [&] {
          return work(movement, [&] {
            std::lock_guard lock(first->mutex);
            first->begun = true;
            first->changed.notify_all();
          });
        });
        std::lock_guard lock(first->mutex);
        first->outcome = outcome;
        first->changed.notify_all();
        return outcome;
      });
  if (!id) return error_response(id.error());
  std::unique_lock lock(first->mutex);
  first->changed.wait_for(lock, kFirstWord, [&] { return first->begun || first->outcome; });
  if (first->outcome && !*first->outcome) return error_response(first->outcome->error());
  return json_response({{"movement", *id}}, 202);
}

Response Routes::migrate(const Request& request, const Caller& caller, const std::string& name) {
  auto body = read_body(request, {{"to", Json::value_t::string},
                                  {"strategy", Json::value_t::string},
                                  {"max_pause_us", Json::value_t::number_unsigned},
                                  {"bandwidth_bytes_per_s", Json::value_t::number_unsigned}});
  if (!body) return error_response(body.error());
  pb::MigrateWorkloadRequest ask;
  ask.set_name(name);
  ask.set_to(body->value("to", std::string()));
  ask.set_strategy(body->value("strategy", std::string()));
  ask.set_max_pause_us(body->value("max_pause_us", std::uint64_t{0}));
  ask.set_bandwidth_bytes_per_s(body->value("bandwidth_bytes_per_s", std::uint64_t{0}));
  auto entry = audit_entry(request, caller, "Migrate");
  entry.set_target(name);
  entry.set_detail(request_text(ask).detail);
  return begin_movement(entry, "migrate", name, ask.to(), caller.who.to_string(),
                        [this, ask, who = caller.who.to_string()](
                            std::uint64_t id, const std::function<void()>& begun) {
                          return parts_.coordinator.migrate(
                              ask,
                              [&](const pb::MigrateProgress& progress) {
                                parts_.movements.progress(id, progress);
                                begun();
                                return true;
                              },
                              who);
                        });
}

Response Routes::failover(const Request& request, const Caller& caller, const std::string& name) {
  auto body = read_body(request, {{"to", Json::value_t::string}, {"allow_loss", Json::value_t::boolean}});
  if (!body) return error_response(body.error());
  pb::FailoverRequest ask;
  ask.set_name(name);
  ask.set_to(body->value("to", std::string()));
  ask.set_allow_loss(body->value("allow_loss", false));
  auto entry = audit_entry(request, caller, "Failover");
  entry.set_target(name);
  entry.set_detail(request_text(ask).detail);
  return begin_movement(entry, "failover", name, ask.to(), caller.who.to_string(),
                        [this, ask, who = caller.who.to_string()](
                            std::uint64_t id, const std::function<void()>& begun) {
                          return parts_.coordinator.failover(
                              ask,
                              [&](const pb::RestoreProgress& progress) {
                                parts_.movements.progress(id, progress);
                                begun();
                                return true;
                              },
                              who);
                        });
}

}  // namespace baton::coordinator::http
