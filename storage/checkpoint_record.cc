#include "storage/checkpoint_record.h"

#include "storage/bytes/byte_io.h"
#include "storage/bytes/checksum.h"

namespace baton::storage {
namespace {

constexpr std::string_view kMagic = "BATONCKP";
constexpr std::uint32_t kVersion = 1;
constexpr std::uint8_t kFromEmpty = 1;

Error invalid(std::string subject) {
  return make_error(Code::kInvalid, "checkpoint record", std::move(subject));
}
Error corrupt(std::string subject) {
  return make_error(Code::kCorrupt, "checkpoint record", std::move(subject));
}

Result<void> validate_object(const ObjectDelta& object, DigestKind kind) {
  const std::string name = "object " + std::to_string(object.object_id);
  if (!object.root.fits(kind)) return invalid(name + ": root is wider than the digest kind");
  if (object.from_empty && !object.erased.empty()) {
    return invalid(name + ": starts empty and erases");
  }
  std::uint64_t next = 0;
  for (const PageRange& range : object.erased) {
    if (range.count == 0 || range.first < next || range.first >= dedup::kMaxPages ||
        range.count > dedup::kMaxPages - range.first) {
      return invalid(name + ": erased ranges are empty, unsorted or out of bounds");
    }
    next = range.first + range.count;
  }
  next = 0;
  for (const PageChange& change : object.changes) {
    if (change.page < next || change.page >= dedup::kMaxPages) {
      return invalid(name + ": pages are unsorted or out of bounds");
    }
    if (change.digest.is_absent()) return invalid(name + ": a changed page has no digest");
    if (!change.digest.fits(kind)) return invalid(name + ": digest is wider than its kind");
    next = change.page + 1;
  }
  return {};
}

bool read_digest(ByteReader& in, std::size_t width, Digest& out) {
  return in.read_raw(std::span(out.bytes.data(), width));
}

Result<ObjectDelta> decode_object(ByteReader& in, std::size_t width) {
  ObjectDelta object;
  std::uint8_t flags;
  if (!in.read_int(object.object_id) || !in.read_int(flags) ||
      !read_digest(in, width, object.root)) {
    return corrupt("truncated in an object's head");
  }
  if (flags & ~kFromEmpty) return corrupt("unknown object flags");
  object.from_empty = flags & kFromEmpty;

  std::uint64_t count;
  // A range takes two bytes at least, a change one and its digest.
  if (!in.read_varint(count) || count > in.left() / 2) return corrupt("count of erased ranges");
  object.erased.reserve(count);
  std::uint64_t next = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t gap, length;
    if (!in.read_varint(gap) || !in.read_varint(length) || length == 0 ||
        gap >= dedup::kMaxPages || next + gap >= dedup::kMaxPages ||
        length > dedup::kMaxPages - (next + gap)) {
      return corrupt("an erased range");
    }
    object.erased.push_back({next + gap, length});
    next += gap + length;
  }

  if (!in.read_varint(count) || count > in.left() / (1 + width)) return corrupt("count of changes");
  object.changes.resize(count);
  next = 0;
  for (PageChange& change : object.changes) {
    std::uint64_t gap;
    if (!in.read_varint(gap) || gap >= dedup::kMaxPages || next + gap >= dedup::kMaxPages) {
      return corrupt("a page number");
    }
    change.page = next + gap;
    next = change.page + 1;
  }
  for (PageChange& change : object.changes) {
    if (!read_digest(in, width, change.digest)) return corrupt("truncated in the digests");
  }
  return object;
}

}  // namespace

std::uint64_t CheckpointRecord::change_count() const {
  std::uint64_t sum = 0;
  for (const ObjectDelta& object : objects) sum += object.changes.size();
  return sum;
}

bool is_valid_workload_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxWorkloadNameBytes) return false;
  if (name[0] == '.' || name[0] == '-') return false;
  for (char c : name) {
    bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '.' || c == '_' || c == '-';
    if (!ok) return false;
  }
  return true;
}

Result<void> validate(const CheckpointRecord& record) {
  if (!is_valid_workload_name(record.workload)) return invalid("workload name");
  if (!dedup::is_known_kind(static_cast<std::uint8_t>(record.kind))) return invalid("digest kind");
  if (record.seq == 0) return invalid("seq is 0");
  if (record.parent_seq >= record.seq) return invalid("parent_seq is not below seq");
  if (record.manifest.size() > kMaxManifestBytes) return invalid("manifest is over 64 MiB");
  if (record.objects.size() > kMaxObjects) return invalid("too many objects");
  for (std::size_t i = 0; i < record.objects.size(); ++i) {
    const ObjectDelta& object = record.objects[i];
    if (i > 0 && object.object_id <= record.objects[i - 1].object_id) {
      return invalid("objects are unsorted");
    }
    if (record.parent_seq == 0 && !object.from_empty) {
      return invalid("a full checkpoint's object does not start empty");
    }
    BATON_TRY(validate_object(object, record.kind));
  }
  return {};
}

Result<std::string> encode(const CheckpointRecord& record) {
  BATON_TRY(validate(record));
  const std::size_t width = dedup::digest_width(record.kind);
  std::uint64_t bytes = record.manifest.size() + record.objects.size() * (32 + width) + 512;
  for (const ObjectDelta& object : record.objects) {
    bytes += object.changes.size() * (width + 6) + object.erased.size() * 12;
  }
  if (bytes > kMaxRecordBytes) {
    return make_error(Code::kNoSpace, "checkpoint record",
                      record.workload + " is over " + std::to_string(kMaxRecordBytes) + " bytes");
  }
  std::string out;
  out.reserve(bytes);
  out += kMagic;
  put_int<std::uint32_t>(out, kVersion);
  put_int<std::uint32_t>(out, 0);
  put_int<std::uint16_t>(out, static_cast<std::uint16_t>(record.workload.size()));
  out += record.workload;
  put_raw(out, record.domain.bytes);
  put_int(out, static_cast<std::uint8_t>(record.kind));
  for (std::uint64_t v : {record.incarnation, record.seq, record.parent_seq, record.freeze_wall_ns,
                          record.freeze_age_ns, record.pause_ns}) {
    put_int(out, v);
  }
  put_int<std::uint64_t>(out, record.manifest.size());
  out += record.manifest;
  put_int<std::uint32_t>(out, static_cast<std::uint32_t>(record.objects.size()));
  for (const ObjectDelta& object : record.objects) {
    put_int(out, object.object_id);
    put_int<std::uint8_t>(out, object.from_empty ? kFromEmpty : 0);
    put_raw(out, std::span(object.root.bytes.data(), width));
    put_varint(out, object.erased.size());
    std::uint64_t next = 0;
    for (const PageRange& range : object.erased) {
      put_varint(out, range.first - next);
      put_varint(out, range.count);
      next = range.first + range.count;
    }
    put_varint(out, object.changes.size());
    next = 0;
    for (const PageChange& change : object.changes) {
      put_varint(out, change.page - next);
      next = change.page + 1;
    }
    for (const PageChange& change : object.changes) {
      put_raw(out, std::span(change.digest.bytes.data(), width));
    }
  }
  put_int<std::uint64_t>(out, checksum(out));
  return out;
}

std::size_t manifest_offset(const CheckpointRecord& record) {
  return kMagic.size() + 4 + 4 + 2 + record.workload.size() + record.domain.bytes.size() + 1 +
         6 * 8 + 8;
}

Result<CheckpointRecord> decode(std::span<const std::byte> bytes) {
  if (bytes.size() > kMaxRecordBytes) return corrupt("longer than allowed");
  if (bytes.size() < kMagic.size() + 8 + 8) return corrupt("truncated");
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) return corrupt("wrong magic");
  std::uint64_t sum;
  std::memcpy(&sum, bytes.data() + bytes.size() - 8, 8);
  const auto body = bytes.first(bytes.size() - 8);
  if (checksum(body) != sum) return corrupt("checksum differs");

  ByteReader in(body.subspan(kMagic.size()));
  CheckpointRecord record;
  std::uint32_t version, flags, objects;
  std::uint16_t name_bytes;
  std::uint8_t kind;
  std::uint64_t manifest_bytes;
  std::span<const std::byte> view;
  if (!in.read_int(version) || !in.read_int(flags)) return corrupt("truncated");
  if (version != kVersion) {
    return make_error(Code::kCorrupt, "checkpoint record",
                      "version " + std::to_string(version) + " is not known",
                      "Is the other node newer? Update this one.");
  }
  if (flags != 0) return corrupt("unknown flags");
  if (!in.read_int(name_bytes) || name_bytes > kMaxWorkloadNameBytes ||
      !in.read_view(name_bytes, view)) {
    return corrupt("workload name");
  }
  record.workload.assign(reinterpret_cast<const char*>(view.data()), view.size());
  if (!in.read_raw(record.domain.bytes) || !in.read_int(kind) || !dedup::is_known_kind(kind)) {
    return corrupt("domain or digest kind");
  }
  record.kind = static_cast<DigestKind>(kind);
  if (!in.read_int(record.incarnation) || !in.read_int(record.seq) ||
      !in.read_int(record.parent_seq) || !in.read_int(record.freeze_wall_ns) ||
      !in.read_int(record.freeze_age_ns) || !in.read_int(record.pause_ns)) {
    return corrupt("truncated in the head");
  }
  if (!in.read_int(manifest_bytes) || manifest_bytes > kMaxManifestBytes ||
      !in.read_view(manifest_bytes, view)) {
    return corrupt("manifest length");
  }
  record.manifest.assign(reinterpret_cast<const char*>(view.data()), view.size());
  const std::size_t width = dedup::digest_width(record.kind);
  // An object takes an id, flags, a root and two counts at least.
  if (!in.read_int(objects) || objects > kMaxObjects || objects > in.left() / (11 + width)) {
    return corrupt("count of objects");
  }
  record.objects.reserve(objects);
  for (std::uint32_t i = 0; i < objects; ++i) {
    BATON_ASSIGN(ObjectDelta object, decode_object(in, width));
    record.objects.push_back(std::move(object));
  }
  if (in.left() != 0) return corrupt("trailing bytes");
  if (auto valid = validate(record); !valid) return corrupt(valid.error().subject);
  return record;
}

}  // namespace baton::storage
