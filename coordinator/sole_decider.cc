// SoleDecider: owner records in the state store, one compare-and-set per change.
#include <utility>

#include "base/fault_point.h"
#include "coordinator/owner_registry.h"

namespace baton::coordinator {
namespace {

pb::Ownership to_ownership(const pb::OwnerRecord& record) {
  pb::Ownership out;
  out.set_workload(record.workload());
  out.set_owner(record.owner());
  out.set_incarnation(record.incarnation());
  return out;
}

class SoleDecider final : public OwnerRegistry {
 public:
  SoleDecider(StateStore& store, const Clock& clock) : store_(store), clock_(clock) {}

  Result<pb::Ownership> create(const std::string& workload, const std::string& owner,
                               const std::string& reason) override {
    BATON_ASSIGN(auto stored, store_.get<pb::OwnerRecord>(workload));
    if (stored.version != 0 && !stored.value.deleted()) {
      return make_error(Code::kConflict, "create owner record",
                        workload + " already has one (incarnation " +
                            std::to_string(stored.value.incarnation()) + ")",
                        "Choose another name, or delete that workload.");
    }
    pb::OwnerRecord next = advance(stored.value, owner, reason);
    next.set_workload(workload);
    BATON_TRY(write(stored.version, next));
    return to_ownership(next);
  }

  Result<pb::Ownership> change_owner(const OwnerChange& change) override {
    BATON_ASSIGN(auto stored, find(change.workload));
    const pb::OwnerRecord& now = stored.value;
    if (now.incarnation() == change.expected_incarnation + 1 && now.owner() == change.new_owner &&
        now.reason() == change.reason && now.committed_seq() == change.committed_seq) {
      return to_ownership(now);
    }
    if (now.incarnation() != change.expected_incarnation) {
      return make_error(Code::kConflict, "change owner",
                        change.workload + " is at incarnation " +
                            std::to_string(now.incarnation()) + ", not " +
                            std::to_string(change.expected_incarnation));
    }
    BATON_TRY(must_decide(now));
    pb::OwnerRecord next = advance(now, change.new_owner, change.reason);
    next.set_committed_seq(change.committed_seq);
    BATON_TRY(write(stored.version, next));
    return to_ownership(next);
  }

  Result<void> retire(const std::string& workload, std::uint64_t expected_incarnation,
                      bool keep_program) override {
    BATON_ASSIGN(auto stored, find_any(workload));
    if (stored.value.deleted()) return {};
    if (stored.value.incarnation() != expected_incarnation) {
      return make_error(Code::kConflict, "retire owner record",
                        workload + " is at incarnation " +
                            std::to_string(stored.value.incarnation()));
    }
    BATON_TRY(must_decide(stored.value));
    pb::OwnerRecord next = advance(stored.value, "", "deleted");
    next.set_deleted(true);
    next.set_keep_program(keep_program);
    return write(stored.version, next);
  }

  Result<pb::Ownership> enter_voters(const pb::TenureRecord& record) override {
    BATON_ASSIGN(auto stored, find(record.workload()));
    const pb::OwnerRecord& now = stored.value;
    if (now.tenure().SerializeAsString() == record.SerializeAsString()) return to_ownership(now);
    BATON_TRY(must_decide(now));
    if (now.incarnation() + 1 != record.incarnation() || now.owner() != record.owner() || record.voters_size() == 0) {
      return make_error(Code::kConflict, "enter voters",
                        record.workload() + " is at incarnation " + std::to_string(now.incarnation()) + ", owned by " +
                            (now.owner().empty() ? std::string("nobody") : now.owner()));
    }
    pb::OwnerRecord next = from(now, record);
    BATON_TRY(write(stored.version, next));
    return to_ownership(next);
  }

  Result<bool> follow(const pb::TenureRecord& record) override {
    BATON_ASSIGN(auto stored, find(record.workload()));
    if (record.incarnation() <= stored.value.incarnation()) return false;
    BATON_TRY(write(stored.version, from(stored.value, record)));
    return true;
  }

  Result<std::optional<pb::OwnerRecord>> get(const std::string& workload) override {
    BATON_ASSIGN(auto stored, store_.get<pb::OwnerRecord>(workload));
    if (stored.version == 0) return std::optional<pb::OwnerRecord>{};
    return std::optional<pb::OwnerRecord>{std::move(stored.value)};
  }

 private:
  Result<Versioned<pb::OwnerRecord>> find_any(const std::string& workload) {
    BATON_ASSIGN(auto stored, store_.get<pb::OwnerRecord>(workload));
    if (stored.version == 0) {
      return make_error(Code::kNotFound, "owner record", "no workload named " + workload);
    }
    return stored;
  }
  Result<Versioned<pb::OwnerRecord>> find(const std::string& workload) {
    BATON_ASSIGN(auto stored, find_any(workload));
    if (stored.value.deleted()) {
      return make_error(Code::kNotFound, "owner record", workload + " was deleted");
    }
    return stored;
  }

  pb::OwnerRecord advance(const pb::OwnerRecord& now, const std::string& owner,
                          const std::string& reason) const {
    pb::OwnerRecord next;
    next.set_workload(now.workload());
    next.set_owner(owner);
    next.set_incarnation(now.incarnation() + 1);
    next.set_reason(reason);
    next.set_previous_owner(now.owner());
    next.set_wall_ns(static_cast<std::uint64_t>(clock_.wall_now().count()));
    return next;
  }

  static Result<void> must_decide(const pb::OwnerRecord& now) {
    if (now.tenure().voters_size() == 0) return {};
    std::string voters;
    for (const auto& voter : now.tenure().voters()) voters += (voters.empty() ? "" : ", ") + voter.node();
    return make_error(Code::kConflict, "change owner", now.workload() + ": its voters decide, " + voters);
  }

  // The owner before stays known when a record only changes who votes.
  pb::OwnerRecord from(const pb::OwnerRecord& now, const pb::TenureRecord& record) const {
    pb::OwnerRecord next;
    next.set_workload(now.workload());
    next.set_owner(record.owner());
    next.set_incarnation(record.incarnation());
    next.set_reason(record.reason());
    next.set_previous_owner(record.owner() == now.owner() ? now.previous_owner() : now.owner());
    next.set_committed_seq(record.committed_seq());
    next.set_wall_ns(static_cast<std::uint64_t>(clock_.wall_now().count()));
    *next.mutable_tenure() = record;
    return next;
  }

  Result<void> write(std::uint64_t version, const pb::OwnerRecord& next) {
    BATON_TRY(fault_point("coordinator.owner.before_commit"));
    pb::Event event;
    event.set_wall_ns(next.wall_ns());
    event.set_kind("owner");
    event.set_workload(next.workload());
    event.set_node(next.owner());
    event.set_text((next.owner().empty() ? std::string("nobody") : next.owner()) +
                   " owns it, incarnation " + std::to_string(next.incarnation()) + " (" +
                   next.reason() + ")");
    event.set_who("coordinator");
    Transaction transaction;
    transaction.put(next.workload(), version, next).event(std::move(event));
    BATON_TRY(store_.commit(transaction));
    // The decision stands whatever happens to us now: no error may come back from here.
    (void)fault_point("coordinator.owner.committed");
    return {};
  }

  StateStore& store_;
  const Clock& clock_;
};

}  // namespace

std::unique_ptr<OwnerRegistry> make_sole_decider(StateStore& store, const Clock& clock) {
  return std::make_unique<SoleDecider>(store, clock);
}

}  // namespace baton::coordinator
