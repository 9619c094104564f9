#include "coordinator/audit.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <optional>
#include <span>
#include <vector>

#include <nlohmann/json.hpp>
#include <openssl/sha.h>

namespace baton::coordinator {
namespace {

using Json = nlohmann::ordered_json;

std::string sha256_hex(std::string_view text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  ::SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  std::string out;
  char two[3];
  for (unsigned char byte : digest) {
    std::snprintf(two, sizeof two, "%02x", byte);
    out += two;
  }
  return out;
}

std::string clipped(const std::string& text) {
  return text.size() <= kMaxAuditFieldBytes ? text : text.substr(0, kMaxAuditFieldBytes) + "…";
}

std::string line_of(const pb::AuditEntry& entry, const std::string& previous) {
  Json json = {{"id", entry.id()},           {"wall_ns", entry.wall_ns()},
               {"who", entry.who()},         {"from", entry.from()},
               {"via", entry.via()},         {"action", entry.action()},
               {"target", entry.target()},   {"detail", entry.detail()},
               {"outcome", entry.outcome()}, {"problem", entry.problem()},
               {"begun_id", entry.begun_id()}, {"previous", previous}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

struct Line {
  pb::AuditEntry entry;
  std::string previous;
};

std::optional<Line> parse_line(std::string_view text_untrusted) {
  const Json json = Json::parse(text_untrusted, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  try {
    Line out;
    out.entry.set_id(json.at("id").get<std::uint64_t>());
    out.entry.set_wall_ns(json.at("wall_ns").get<std::uint64_t>());
    out.entry.set_who(json.at("who").get<std::string>());
    out.entry.set_from(json.at("from").get<std::string>());
    out.entry.set_via(json.at("via").get<std::string>());
    out.entry.set_action(json.at("action").get<std::string>());
    out.entry.set_target(json.at("target").get<std::string>());
    out.entry.set_detail(json.at("detail").get<std::string>());
    out.entry.set_outcome(json.at("outcome").get<std::string>());
    out.entry.set_problem(json.at("problem").get<std::string>());
    out.entry.set_begun_id(json.at("begun_id").get<std::uint64_t>());
    out.previous = json.at("previous").get<std::string>();
    return out;
  } catch (const Json::exception&) {  // a field is missing or of another type
    return std::nullopt;
  }
}

Error broken(const std::string& path, std::uint64_t after, const std::string& why) {
  return make_error(Code::kCorrupt, "read audit log",
                    path + ": after entry " + std::to_string(after) + ": " + why,
                    "Keep the files as they are and find out who changed them.");
}

}  // namespace

std::string AuditLog::path(int age) const {
  return dir_ + (age == 0 ? "/audit.log" : "/audit." + std::to_string(age) + ".log");
}

Result<std::unique_ptr<AuditLog>> AuditLog::open(const std::string& dir, const Clock& clock,
                                                 std::size_t max_file_bytes) {
  std::unique_ptr<AuditLog> log(new AuditLog(dir, clock, max_file_bytes));
  BATON_TRY(log->load());
  return log;
}

Result<void> AuditLog::load() {
  for (int age = 1; age >= 0; --age) {  // a crash between rename and open leaves only age 1
    auto text = read_file(path(age), 2 * max_file_bytes_ + kMaxAuditFieldBytes * 16);
    if (!text) {
      if (text.error().code == Code::kNotFound) continue;
      return text.error();
    }
    const std::size_t end = text->rfind('\n');
    const std::size_t whole = end == std::string::npos ? 0 : end + 1;
    if (whole < text->size() && ::truncate(path(age).c_str(), static_cast<off_t>(whole)) != 0) {
      return errno_error("cut a torn line off", path(age));
    }
    if (whole == 0) continue;
    const std::size_t before = end == 0 ? std::string::npos : text->rfind('\n', end - 1);
    const std::size_t begin = before == std::string::npos ? 0 : before + 1;
    const std::string last = text->substr(begin, end - begin);
    auto line = parse_line(last);
    if (!line) return broken(path(age), last_id_, "the last line does not parse");
    last_id_ = line->entry.id();
    last_hash_ = sha256_hex(last);
    if (age == 0) bytes_ = whole;
  }
  BATON_ASSIGN(file_, open_file(path(0), O_WRONLY | O_CREAT | O_APPEND, 0600));
  return {};
}

Result<void> AuditLog::rotate() {
  ::unlink(path(kMaxAuditFiles - 1).c_str());
  for (int age = kMaxAuditFiles - 2; age >= 0; --age) {
    if (::rename(path(age).c_str(), path(age + 1).c_str()) != 0 && errno != ENOENT) {
      return errno_error("rotate", path(age));
    }
  }
  BATON_ASSIGN(file_, open_file(path(0), O_WRONLY | O_CREAT | O_APPEND, 0600));
  bytes_ = 0;
  BATON_ASSIGN(Fd folder, open_file(dir_, O_RDONLY | O_DIRECTORY));
  if (::fsync(folder.get()) != 0) return errno_error("sync", dir_);
  return {};
}

Result<std::uint64_t> AuditLog::append(pb::AuditEntry entry) {
  for (auto* field : {entry.mutable_who(), entry.mutable_from(), entry.mutable_target(),
                      entry.mutable_detail(), entry.mutable_problem()}) {
    *field = clipped(*field);
  }
  std::lock_guard lock(mutex_);
  if (bytes_ >= max_file_bytes_) BATON_TRY(rotate());
  entry.set_id(last_id_ + 1);
  entry.set_wall_ns(static_cast<std::uint64_t>(clock_.wall_now().count()));
  const std::string line = line_of(entry, last_hash_);
  const std::string bytes = line + "\n";
  auto written = write_all(file_.get(), std::as_bytes(std::span(bytes)));
  if (written && ::fdatasync(file_.get()) != 0) written = errno_error("sync", path(0));
  if (!written) {
    // Half a line would break the chain of the next one.
    if (::ftruncate(file_.get(), static_cast<off_t>(bytes_)) != 0) file_.reset();
    return written.error();
  }
  bytes_ += bytes.size();
  last_id_ = entry.id();
  last_hash_ = sha256_hex(line);
  return entry.id();
}

Result<void> AuditLog::read(const pb::AuditRequest& request,
                            const std::function<bool(const pb::AuditEntry&)>& sink) {
  std::vector<std::string> files;  // oldest first
  std::uint64_t last = 0;
  {
    std::lock_guard lock(mutex_);
    last = last_id_;
    for (int age = kMaxAuditFiles - 1; age >= 0; --age) {
      auto text = read_file(path(age), 2 * max_file_bytes_ + kMaxAuditFieldBytes * 16);
      if (text) {
        files.push_back(std::move(*text));
      } else if (text.error().code != Code::kNotFound) {
        return text.error();
      }
    }
  }
  const std::uint64_t from =
      request.newest() > 0 && last > request.newest() ? last - request.newest() : 0;
  std::uint64_t id = 0;
  std::string hash;
  for (const auto& text : files) {
    std::size_t at = 0;
    while (at < text.size()) {
      std::size_t end = text.find('\n', at);
      if (end == std::string::npos) end = text.size();
      const std::string_view raw(text.data() + at, end - at);
      at = end + 1;
      auto line = parse_line(raw);
      if (!line) return broken(dir_, id, "a line does not parse");
      if (id != 0 && line->previous != hash) return broken(dir_, id, "the chain is broken");
      if (id != 0 && line->entry.id() != id + 1) return broken(dir_, id, "an entry is missing");
      id = line->entry.id();
      hash = sha256_hex(raw);
      const auto& entry = line->entry;
      if (id <= request.after_id() || id <= from ||
          (!request.who().empty() && entry.who() != request.who()) ||
          (!request.target().empty() && entry.target() != request.target())) {
        continue;
      }
      if (!sink(entry)) return {};
    }
  }
  if (id != last) return broken(dir_, id, "the end is missing");
  return {};
}

}  // namespace baton::coordinator
