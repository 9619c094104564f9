#include "storage/comparison.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "storage/memory_map.h"

namespace baton::storage {
namespace {

using dedup::kPageBytes;
constexpr std::size_t kLineBytes = 16;  // the granularity of a content difference

struct Side {
  Checkpoint checkpoint;
  std::optional<MemoryMap> map;
};

Result<Side> load_side(Store& store, const CheckpointName& name) {
  Side side;
  BATON_ASSIGN(side.checkpoint, store.load(name.workload, name.seq));
  BATON_ASSIGN(auto map, MemoryMap::parse(side.checkpoint.manifest));
  side.map.emplace(std::move(map));
  return side;
}

class Comparison {
 public:
  Comparison(Store& store, const CompareOptions& options,
             const std::function<bool(const pb::DiffPart&)>& sink)
      : store_(store), options_(options), sink_(sink) {}

  Result<void> run(const CheckpointName& a, const CheckpointName& b) {
    const auto lease = store_.lease();
    BATON_ASSIGN(a_, load_side(store_, a));
    BATON_ASSIGN(b_, load_side(store_, b));
    BATON_ASSIGN(auto key_a, store_.identity(a.workload));
    BATON_ASSIGN(auto key_b, store_.identity(b.workload));
    if (key_a.domain != key_b.domain) {
      return make_error(Code::kInvalid, "diff", a.workload + " and " + b.workload +
                                                    " do not share a dedup domain: their pages cannot be compared");
    }
    pair_mappings();
    pair_objects();
    for (const auto& [left, right] : objects_) count_object(left, right);
    BATON_TRY(tell_mappings());
    BATON_TRY(tell_pages());
    return tell_summary();
  }

 private:
  struct Change {
    std::uint64_t changed = 0, added = 0, removed = 0;
  };
  struct PageToTell {
    const MappingView* mapping = nullptr;
    std::uint64_t object = 0, page = 0;
    bool in_b = false;  // of which side mapping and object are
    Digest before, after;
  };

  Result<void> emit(const pb::DiffPart& part) {
    if (!sink_(part)) return make_error(Code::kCancelled, "diff", "nobody listens any more");
    return {};
  }

  // A mapping of one side and that of the other which took its place.
  void pair_mappings() {
    std::map<std::pair<std::int32_t, std::uint64_t>, const MappingView*> starts;
    for (const auto& m : a_.map->mappings()) starts[{m.pid, m.start}] = &m;
    std::set<const MappingView*> taken;
    auto pair = [&](const MappingView& now, const MappingView* old) {
      partner_[&now] = old;
      taken.insert(old);
    };
    for (const auto& m : b_.map->mappings()) {
      auto it = starts.find({m.pid, m.start});
      if (it != starts.end() && it->second->kind == m.kind && it->second->name == m.name) pair(m, it->second);
    }
    for (const auto& m : b_.map->mappings()) {
      if (partner_.contains(&m)) continue;
      for (const auto& old : a_.map->mappings()) {
        if (old.pid == m.pid && old.kind == m.kind && old.name == m.name && !taken.contains(&old) &&
            old.start < m.end && m.start < old.end) {
          pair(m, &old);
          break;
        }
      }
    }
    for (const auto& m : a_.map->mappings()) {
      if (!taken.contains(&m)) removed_.push_back(&m);
    }
  }

  // Private memory belongs together when its process has the same pid; the rest by id.
  void pair_objects() {
    std::set<std::uint64_t> left, right;
    for (const auto& now : b_.map->state().processes()) {
      const auto* old = a_.map->process(now.pid());
      if (!old || old->memory_object() == 0 || now.memory_object() == 0) continue;
      if (left.contains(old->memory_object()) || right.contains(now.memory_object())) continue;
      objects_.emplace_back(old->memory_object(), now.memory_object());
      left.insert(old->memory_object());
      right.insert(now.memory_object());
    }
    for (const auto& [id, table] : a_.checkpoint.objects) {
      if (left.contains(id)) continue;
      const bool both = b_.checkpoint.objects.contains(id) && !right.contains(id);
      objects_.emplace_back(id, both ? id : 0);
      if (both) right.insert(id);
    }
    for (const auto& [id, table] : b_.checkpoint.objects) {
      if (!right.contains(id)) objects_.emplace_back(0, id);
    }
  }

  void count_object(std::uint64_t left, std::uint64_t right) {
    const auto kind = b_.checkpoint.hasher->kind();
    const dedup::PageTable nothing(kind);
    auto table = [&](const Side& side, std::uint64_t id) -> const dedup::PageTable& {
      auto it = side.checkpoint.objects.find(id);
      return id == 0 || it == side.checkpoint.objects.end() ? nothing : it->second;
    };
    dedup::PageTable::diff(
        table(a_, left), table(b_, right),
        [&](std::uint64_t page, const Digest& before, const Digest& after) {
          const bool in_b = !after.is_absent();
          const MappingView* mapping = in_b ? b_.map->find(right, page) : a_.map->find(left, page);
          Change& change = mapping ? changes_[mapping] : loose_[{in_b, in_b ? right : left}];
          auto& number = before.is_absent() ? change.added : after.is_absent() ? change.removed : change.changed;
          ++number;
          ++(before.is_absent() ? sum_.added : after.is_absent() ? sum_.removed : sum_.changed);
          if (pages_.size() < std::min(options_.max_pages, kMaxToldPages)) {
            pages_.push_back({mapping, in_b ? right : left, page, in_b, before, after});
          }
        },
        b_.checkpoint.hasher.get());
  }

  static std::string hex(std::uint64_t value) {
    char text[24];
    std::snprintf(text, sizeof text, "%llx", static_cast<unsigned long long>(value));
    return text;
  }

  void fill(pb::DiffMapping& out, const MappingView& m, const std::string& change) {
    out.set_pid(m.pid);
    out.set_start(m.start);
    out.set_end(m.end);
    out.set_name(m.name);
    out.set_kind(std::string(memory_kind_name(m.kind)));
    out.set_change(change);
    if (auto it = changes_.find(&m); it != changes_.end()) {
      out.set_pages_changed(it->second.changed);
      out.set_pages_added(it->second.added);
      out.set_pages_removed(it->second.removed);
    }
  }

  Result<void> tell_mapping(const MappingView& m, const std::string& change, std::string detail) {
    pb::DiffPart part;
    fill(*part.mutable_mapping(), m, change);
    part.mutable_mapping()->set_detail(std::move(detail));
    if (change != "same") ++mappings_changed_;
    return emit(part);
  }

  Result<void> tell_mappings() {
    for (const auto& m : b_.map->mappings()) {
      auto it = partner_.find(&m);
      if (it == partner_.end()) {
        BATON_TRY(tell_mapping(m, "added", rights_text(*m.mapping)));
        continue;
      }
      const MappingView& old = *it->second;
      std::string detail;
      if (old.start != m.start || old.end != m.end) detail = "was " + hex(old.start) + "-" + hex(old.end);
      if (rights_text(*old.mapping) != rights_text(*m.mapping)) {
        detail += (detail.empty() ? "" : ", ") + ("rights " + rights_text(*old.mapping) + " to " + rights_text(*m.mapping));
      }
      // A page that went with the part of a mapping that is gone counts where it was.
      if (auto gone = changes_.find(&old); gone != changes_.end()) changes_[&m].removed += gone->second.removed;
      if (!detail.empty()) {
        BATON_TRY(tell_mapping(m, "changed", std::move(detail)));
      } else if (changes_.contains(&m)) {
        BATON_TRY(tell_mapping(m, "same", {}));
      }
    }
    for (const auto* m : removed_) BATON_TRY(tell_mapping(*m, "removed", rights_text(*m->mapping)));
    for (const auto& [key, change] : loose_) {
      pb::DiffPart part;
      auto& out = *part.mutable_mapping();
      out.set_name((key.first ? b_ : a_).map->object_name(key.second));
      const MemoryKind kind = (key.first ? b_ : a_).map->object_kind(key.second);
      out.set_kind(std::string(memory_kind_name(kind)));
      out.set_change("same");
      out.set_pages_changed(change.changed);
      out.set_pages_added(change.added);
      out.set_pages_removed(change.removed);
      if (kind == MemoryKind::kOther) out.set_detail("no mapping shows these pages");
      BATON_TRY(emit(part));
    }
    return {};
  }

  Result<void> read_page(const Checkpoint& from, const Digest& digest, std::byte* out) {
    if (digest.is_absent()) {
      std::memset(out, 0, kPageBytes);
      return {};
    }
    const PageGet get{digest, out};
    return store_.pages().get(from.domain, *from.hasher, std::span(&get, 1));
  }

  Result<void> tell_pages() {
    std::vector<std::byte> before(kPageBytes), after(kPageBytes);
    for (const PageToTell& p : pages_) {
      pb::DiffPart part;
      auto& out = *part.mutable_page();
      out.set_pid(p.mapping ? p.mapping->pid : 0);
      out.set_address(p.mapping ? p.mapping->address_of(p.page) : p.page * kPageBytes);
      out.set_mapping(p.mapping ? p.mapping->name : (p.in_b ? b_ : a_).map->object_name(p.object));
      out.set_change(p.before.is_absent() ? "added" : p.after.is_absent() ? "removed" : "changed");
      BATON_TRY(read_page(a_.checkpoint, p.before, before.data()));
      BATON_TRY(read_page(b_.checkpoint, p.after, after.data()));
      std::uint32_t differ = 0;
      for (std::size_t at = 0; at < kPageBytes; at += kLineBytes) {
        if (std::memcmp(before.data() + at, after.data() + at, kLineBytes) == 0) continue;
        for (std::size_t i = at; i < at + kLineBytes; ++i) differ += before[i] != after[i];
        if (!options_.content) continue;
        auto* run = out.add_runs();
        run->set_offset(static_cast<std::uint32_t>(at));
        run->set_before(before.data() + at, kLineBytes);
        run->set_after(after.data() + at, kLineBytes);
      }
      out.set_bytes_differ(differ);
      BATON_TRY(emit(part));
    }
    return {};
  }

  // What a person would ask next: processes, threads, descriptors, directories.
  void compare_state(pb::DiffSummary& out) {
    for (const auto& now : b_.map->state().processes()) {
      const auto* old = a_.map->process(now.pid());
      const std::string who = "process " + std::to_string(now.pid()) + " " + now.comm();
      if (!old) {
        out.add_state(who + ": new");
        continue;
      }
      if (old->threads_size() != now.threads_size()) {
        out.add_state(who + ": " + std::to_string(old->threads_size()) + " threads, now " +
                      std::to_string(now.threads_size()));
      }
      if (old->cwd() != now.cwd()) out.add_state(who + ": working directory " + old->cwd() + ", now " + now.cwd());
      if (old->stopped() != now.stopped()) out.add_state(who + (now.stopped() ? ": stopped" : ": no longer stopped"));
      std::set<std::int32_t> left, right;
      for (const auto& d : old->descriptors()) left.insert(d.number());
      for (const auto& d : now.descriptors()) right.insert(d.number());
      auto list = [&](const std::set<std::int32_t>& from, const std::set<std::int32_t>& without) {
        std::string text;
        for (int number : from) {
          if (!without.contains(number)) text += (text.empty() ? "" : " ") + std::to_string(number);
        }
        return text;
      };
      if (auto opened = list(right, left); !opened.empty()) out.add_state(who + ": descriptors opened: " + opened);
      if (auto closed = list(left, right); !closed.empty()) out.add_state(who + ": descriptors closed: " + closed);
    }
    for (const auto& old : a_.map->state().processes()) {
      if (!b_.map->process(old.pid())) {
        out.add_state("process " + std::to_string(old.pid()) + " " + old.comm() + ": gone");
      }
    }
  }

  Result<void> tell_summary() {
    pb::DiffPart part;
    auto& out = *part.mutable_summary();
    out.set_pages_a(a_.checkpoint.info.pages);
    out.set_pages_b(b_.checkpoint.info.pages);
    out.set_pages_changed(sum_.changed);
    out.set_pages_added(sum_.added);
    out.set_pages_removed(sum_.removed);
    out.set_mappings_changed(mappings_changed_);
    out.set_pages_told(pages_.size());
    compare_state(out);
    return emit(part);
  }

  Store& store_;
  const CompareOptions options_;
  const std::function<bool(const pb::DiffPart&)>& sink_;
  Side a_, b_;
  std::map<const MappingView*, const MappingView*> partner_;  // of b: of a
  std::vector<const MappingView*> removed_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> objects_;  // 0: on one side only
  std::map<const MappingView*, Change> changes_;
  std::map<std::pair<bool, std::uint64_t>, Change> loose_;
  std::vector<PageToTell> pages_;
  Change sum_;
  std::uint64_t mappings_changed_ = 0;
};

}  // namespace

Result<void> compare(Store& store, const CheckpointName& a, const CheckpointName& b,
                     const CompareOptions& options,
                     const std::function<bool(const pb::DiffPart&)>& sink) {
  return Comparison(store, options, sink).run(a, b);
}

}  // namespace baton::storage
