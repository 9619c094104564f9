// WorkloadCatalog: making a workload's folder, and reading it back at open.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>

#include "storage/bytes/byte_io.h"
#include "storage/bytes/checksum.h"
#include "storage/log/marks.h"
#include "storage/log/workload_catalog.h"

namespace baton::storage {
namespace {

constexpr std::string_view kIdentityMagic = "BATONIDY";
constexpr std::uint32_t kPlainVersion = 1, kSealedVersion = 2;
// Two copies: without its key a workload's pages cannot be checked.
constexpr std::string_view kIdentityFiles[] = {"/identity", "/identity.copy"};

std::string encode_body(const WorkloadIdentity& identity) {
  std::string out;
  put_int(out, static_cast<std::uint8_t>(identity.kind));
  put_raw(out, identity.domain.bytes);
  put_raw(out, identity.key);
  put_int<std::uint16_t>(out, static_cast<std::uint16_t>(identity.workload.size()));
  return out + identity.workload;
}

// With a node key: the body and the workload's own key, sealed.
std::string encode_identity(const WorkloadIdentity& identity, const Sealer* node_key, const Sealer* key) {
  std::string out(kIdentityMagic);
  put_int(out, node_key ? kSealedVersion : kPlainVersion);
  std::string body = encode_body(identity);
  if (node_key) {
    put_raw(body, key->key());
    const std::string bound = out;
    node_key->seal(as_bytes_of(body), as_bytes_of(bound), out);
  } else {
    out += body;
  }
  put_int<std::uint64_t>(out, checksum(out));
  return out;
}

bool decode_body(ByteReader& in, WorkloadIdentity& out) {
  std::uint8_t kind;
  std::uint16_t name_bytes;
  std::span<const std::byte> name;
  if (!in.read_int(kind) || !dedup::is_known_kind(kind) || !in.read_raw(out.domain.bytes) || !in.read_raw(out.key) ||
      !in.read_int(name_bytes) || !in.read_view(name_bytes, name)) {
    return false;
  }
  out.kind = static_cast<DigestKind>(kind);
  out.workload.assign(reinterpret_cast<const char*>(name.data()), name.size());
  return is_valid_workload_name(out.workload);
}

// Fails: kCorrupt, kUnsupported (a newer format), kNotAllowed (sealed; no key, or another one).
Result<void> decode_identity(const std::string& file, std::string_view bytes, const Sealer* node_key,
                             WorkloadIdentity& out, SealerPtr& key) {
  const Error damaged = make_error(Code::kCorrupt, "open workload", file + ": its identity is damaged",
                                   "Move the folder away to give this workload's checkpoints up.");
  const std::size_t head_bytes = kIdentityMagic.size() + 4;
  if (bytes.size() < head_bytes + 8 || !bytes.starts_with(kIdentityMagic)) return damaged;
  std::uint64_t sum;
  std::memcpy(&sum, bytes.data() + bytes.size() - 8, 8);
  bytes.remove_suffix(8);
  if (checksum(bytes) != sum) return damaged;
  std::uint32_t version;
  std::memcpy(&version, bytes.data() + kIdentityMagic.size(), sizeof version);
  if (version > kSealedVersion) {
    return make_error(Code::kUnsupported, "open workload", file + ": format version " + std::to_string(version) +
                                                               ", this program knows up to " + std::to_string(kSealedVersion),
                      "Use the version of Baton that wrote it, or a newer one.");
  }
  if (version == kPlainVersion) {
    ByteReader in(as_bytes_of(bytes.substr(head_bytes)));
    if (!decode_body(in, out) || in.left() != 0) return damaged;
    return {};
  }
  if (version != kSealedVersion) return damaged;
  if (!node_key) {
    return make_error(Code::kNotAllowed, "open workload", file + ": the store is encrypted, and no key was given",
                      "Start the agent with --store-key FILE.");
  }
  const auto sealed = as_bytes_of(bytes.substr(head_bytes));
  if (sealed.size() < kSealBytes) return damaged;
  std::string body(sealed.size() - kSealBytes, '\0');
  if (!node_key->open(sealed, as_bytes_of(bytes.substr(0, head_bytes)),
                      std::as_writable_bytes(std::span(body.data(), body.size())))) {
    return make_error(Code::kNotAllowed, "open workload", file + ": it was encrypted with another key",
                      "Give the key file that this store was made with.");
  }
  ByteReader in(as_bytes_of(body));
  Sealer::Key own;
  if (!decode_body(in, out) || !in.read_raw(own) || in.left() != 0) return damaged;
  key = std::make_shared<const Sealer>(own);
  return {};
}

}  // namespace

Result<std::shared_ptr<WorkloadCatalog>> WorkloadCatalog::create(const std::string& folder,
                                                                 const WorkloadIdentity& identity,
                                                                 Context context, SealerPtr key) {
  BATON_TRY(context.disk.make_folder(folder));
  auto catalog = std::shared_ptr<WorkloadCatalog>(new WorkloadCatalog(folder, identity, context));
  catalog->key_ = std::move(key);
  catalog->generation_ = 1;
  BATON_ASSIGN(catalog->log_, CatalogLog::create(catalog->log_path(1), context.disk));
  BATON_TRY(catalog->log_->sync());
  // The identity last: a folder without one was never finished.
  BATON_TRY(catalog->write_identity());
  BATON_TRY(context.disk.sync_folder(folder));
  return catalog;
}

Result<void> WorkloadCatalog::write_identity() {
  for (std::string_view file : kIdentityFiles) {
    BATON_TRY(context_.disk.replace(folder_ + std::string(file),
                                    encode_identity(identity_, key_ ? context_.node_key.get() : nullptr, key_.get())));
  }
  return {};
}

void WorkloadCatalog::erase_key() {
  for (std::string_view file : kIdentityFiles) {
    auto fd = context_.disk.open(folder_ + std::string(file));
    if (!fd) continue;
    std::string zeros(512, '\0');
    iovec part{zeros.data(), zeros.size()};
    if (auto written = context_.disk.write_at(fd->get(), std::span(&part, 1), 0); written) written = context_.disk.sync(fd->get());
  }
}

Result<std::shared_ptr<WorkloadCatalog>> WorkloadCatalog::open(const std::string& folder,
                                                               Context context,
                                                               StoreStats& counters) {
  WorkloadIdentity identity;
  SealerPtr key;
  bool found = false, any = false;
  std::optional<Error> problem;
  for (std::string_view file : kIdentityFiles) {
    const std::string path = folder + std::string(file);
    auto bytes = context.disk.read(path, 4096);
    if (!bytes && bytes.error().code == Code::kNotFound) continue;
    if (!bytes) return bytes.error();
    any = true;
    if (found) continue;
    auto decoded = decode_identity(path, *bytes, context.node_key.get(), identity, key);
    found = decoded.has_value();
    if (!found && (!problem || problem->code == Code::kCorrupt)) problem = decoded.error();
  }
  if (!any) {
    context.disk.remove_tree(folder);
    return std::shared_ptr<WorkloadCatalog>();
  }
  if (!found) return *problem;
  if (folder.substr(folder.rfind('/') + 1) != identity.workload) {
    return make_error(Code::kCorrupt, "open workload", folder + ": its identity is of " + identity.workload);
  }

  auto catalog = std::shared_ptr<WorkloadCatalog>(new WorkloadCatalog(folder, identity, context));
  std::vector<std::uint64_t> generations;
  BATON_ASSIGN(auto names, context.disk.list(folder));
  for (const std::string& name : names) {
    unsigned long long generation = 0;
    const std::string path = folder + "/" + name;
    if (std::sscanf(name.c_str(), "catalog-%16llx.log", &generation) == 1 &&
        path == catalog->log_path(generation)) {
      generations.push_back(generation);
    } else if (name == "catalog.new") {
      BATON_TRY(context.disk.unlink(path));
    }
  }
  std::sort(generations.begin(), generations.end());
  if (!generations.empty()) {
    catalog->generation_ = generations.back();
    for (std::uint64_t g : generations) {
      if (g != catalog->generation_) BATON_TRY(context.disk.unlink(catalog->log_path(g)));
    }
  }
  catalog->key_ = key;
  if (!key && context.node_key) {
    // A store that was in the clear: from now on this workload has a key, and its log is
    // written anew with it.
    BATON_ASSIGN(const auto fresh, Sealer::make_key());
    catalog->key_ = std::make_shared<const Sealer>(fresh);
    BATON_TRY(catalog->write_identity());
  }
  BATON_TRY(catalog->replay(counters));
  if (catalog->key_ && catalog->in_the_clear_) BATON_TRY(catalog->rotate_locked());
  return catalog;
}

Result<void> WorkloadCatalog::replay(StoreStats& counters) {
  const std::uint64_t damaged_before = counters.damaged_records;
  const std::string path = log_path(generation_);
  auto opened = CatalogLog::open(
      path, context_.disk,
      [&](const LogEntry& entry, std::span<const std::byte> payload, std::uint64_t at) {
        replay_entry(entry, payload, at, counters);
      },
      counters.damaged_records);
  if (!opened) {
    if (opened.error().code != Code::kCorrupt && opened.error().code != Code::kNotFound) {
      return opened.error();
    }
    ++counters.damaged_records;
    spdlog::error("store: {}: {}; set aside, the workload starts without checkpoints",
                  identity_.workload, opened.error().message());
    if (opened.error().code == Code::kCorrupt) {
      BATON_TRY(context_.disk.rename(path, path + ".damaged"));
    }
    ++generation_;
    BATON_ASSIGN(log_, CatalogLog::create(log_path(generation_), context_.disk));
    return context_.disk.sync_folder(folder_);
  }
  log_ = *opened;
  for (HeldCheckpoint& h : held_) h.log = log_;
  const std::uint64_t rolled_back_before = counters.rolled_back;
  roll_back_torn(counters);
  if (!held_.empty()) erase_below(held_.back().keep_from);
  compacted_bytes_ = log_->bytes() / 2;
  if (log_->outdated() || counters.damaged_records != damaged_before ||
      counters.rolled_back != rolled_back_before) {
    // Settles what was found, so that the next open finds the same, in the present format.
    if (auto rotated = rotate_locked(); !rotated) {
      spdlog::error("store: {}: {}", identity_.workload, rotated.error().message());
      log_->mark_broken();  // nothing more goes to it
    }
  }
  return {};
}

void WorkloadCatalog::replay_entry(const LogEntry& entry, std::span<const std::byte> payload,
                                   std::uint64_t payload_at, StoreStats& counters) {
  switch (entry.type) {
    case EntryType::kDrop:
      if (auto it = find(entry.value); it != held_.end()) held_.erase(it);
      return;
    case EntryType::kKeepFrom:
      erase_below(entry.value);
      return;
    case EntryType::kIncarnation:
      incarnation_ = std::max(incarnation_, entry.value);
      return;
    case EntryType::kMarks:
      if (auto it = find(entry.value); it == held_.end() || !read_marks(payload, it->info)) {
        ++counters.damaged_records;
      }
      return;
    case EntryType::kPolicy:
      if (!read_policy(payload, policy_)) ++counters.damaged_records;
      return;
    case EntryType::kCheckpoint:
      break;
  }
  std::string opened;
  std::span<const std::byte> plain = payload;
  if (entry.sealed) {
    if (auto unsealed = unseal(payload)) {
      opened = std::move(*unsealed);
      plain = as_bytes_of(opened);
    }
  } else {
    in_the_clear_ = true;
  }
  auto record = decode(plain);
  if (!record || record->workload != identity_.workload || record->domain != identity_.domain ||
      record->kind != identity_.kind) {
    ++counters.damaged_records;
    return;
  }
  auto base = record->parent_seq == 0 ? held_.end() : find(record->parent_seq);
  HeldCheckpoint next;
  auto objects = build(*record, base == held_.end() ? nullptr : base->objects.get());
  if (!objects) {
    spdlog::error("store: {}", objects.error().message());
    ++counters.damaged_records;
    return;
  }
  next.objects = *objects;
  next.info = make_info(*record, **objects);
  next.info.parent_seq = entry.parent_seq;
  next.info.changed_pages = entry.changed_pages;
  next.info.commit_wall_ns = entry.commit_wall_ns;
  next.freeze_age_ns = record->freeze_age_ns;
  next.manifest_at = entry.sealed ? payload_at : payload_at + manifest_offset(*record);
  next.sealed_bytes = entry.sealed ? payload.size() : 0;
  next.manifest_sum = checksum(record->manifest);
  next.keep_from = entry.value;
  chain_ = record->parent_seq == 0 ? 0 : chain_ + 1;
  incarnation_ = std::max(incarnation_, record->incarnation);
  while (!held_.empty() && held_.back().info.seq >= next.info.seq) held_.pop_back();
  if (entry.pages_synced) {
    synced_seq_ = next.info.seq;
    erase_below(entry.value);
  }
  // Otherwise what it dropped stays until roll_back_torn knows that its pages are whole.
  held_.push_back(std::move(next));
}

// A checkpoint whose pages were never synced may have lost some to a power cut; as far as the
// promise of its durability goes, it was never there. A page missing from a synced one is
// damage: reported, and the checkpoint stays in the list, for its page may come back.
void WorkloadCatalog::roll_back_torn(StoreStats& counters) {
  DigestSet missing;
  std::vector<HeldCheckpoint> kept;
  const ObjectMap nothing;
  std::shared_ptr<const ObjectMap> previous(std::shared_ptr<void>(), &nothing);
  const dedup::PageTable empty(identity_.kind);
  for (HeldCheckpoint& h : held_) {
    std::vector<Digest> fresh;
    for (const auto& [id, table] : *h.objects) {
      auto it = previous->find(id);
      dedup::PageTable::diff(it == previous->end() ? empty : it->second, table,
                             [&](std::uint64_t, const Digest&, const Digest& now) {
                               if (!now.is_absent()) fresh.push_back(now);
                             });
    }
    previous = h.objects;
    const std::vector<bool> known = context_.pages.contains(identity_.domain, fresh);
    for (std::size_t k = 0; k < fresh.size(); ++k) {
      if (!known[k]) missing.insert(fresh[k]);
    }
    if (!missing.empty()) {
      for (const auto& [id, table] : *h.objects) {
        table.for_each([&](std::uint64_t, const Digest& d) {
          h.info.missing_pages += missing.contains(d);
        });
      }
    }
    if (h.info.missing_pages == 0) {
      kept.push_back(std::move(h));
    } else if (h.info.seq > synced_seq_) {
      spdlog::warn("store: {} is given up: {} of its pages were lost before they were synced",
                   name_of(h.info.seq), h.info.missing_pages);
      ++counters.rolled_back;
    } else {
      spdlog::error("store: {}: {} pages are missing from the disk", name_of(h.info.seq),
                    h.info.missing_pages);
      kept.push_back(std::move(h));
    }
  }
  held_ = std::move(kept);
}

}  // namespace baton::storage
