#include "coordinator/cli/render_store.h"

#include <cctype>
#include <cstdio>

#include "coordinator/cli/units.h"

namespace baton::cli {
namespace {

std::string number(std::uint64_t value) { return std::to_string(value); }

std::string hex(std::uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "%012llx", static_cast<unsigned long long>(value));
  return text;
}

std::string percent(std::uint64_t part, std::uint64_t whole) {
  if (whole == 0) return "-";
  char text[16];
  std::snprintf(text, sizeof text, "%.1f %%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
  return text;
}

Json counts_json(const pb::AnalyzeCounts& c) {
  return {{"written", c.written()},         {"zero", c.zero()},
          {"intra", c.intra()},             {"inter", c.inter()},
          {"fresh", c.fresh()},             {"zero_bytes", c.zero_bytes()},
          {"intra_bytes", c.intra_bytes()}, {"inter_bytes", c.inter_bytes()},
          {"zstd_bytes", c.zstd_bytes()},   {"delta_bytes", c.delta_bytes()},
          {"left_bytes", c.left_bytes()}};
}

std::vector<std::string> counts_cells(const pb::AnalyzeCounts& c) {
  return {number(c.written()),           percent(c.zero(), c.written()),
          percent(c.intra(), c.written()), percent(c.inter(), c.written()),
          percent(c.fresh(), c.written()), format_bytes(c.left_bytes())};
}

template <typename Buckets>
Json buckets_json(const Buckets& buckets, bool contents) {
  Json list = Json::array();
  for (const auto& b : buckets) {
    Json one = {{"from", b.from()}, {"to", b.to()}, {"pages", b.pages()}};
    if (contents) one["contents"] = b.contents();
    list.push_back(std::move(one));
  }
  return list;
}

template <typename Bucket>
std::string range(const Bucket& b) {
  return b.from() == b.to() ? number(b.from()) : number(b.from()) + " to " + number(b.to());
}

// "00000010  61 62 …  |ab…|", the bytes that differ from `other` in brackets of nothing but place.
std::string hex_line(char sign, std::uint64_t address, const std::string& bytes) {
  std::string out = std::string("    ") + sign + " " + hex(address) + " ";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    char two[8];
    const auto byte = static_cast<unsigned char>(bytes[i]);
    std::snprintf(two, sizeof two, "%s%02x", i == 8 ? "  " : " ", byte);
    out += two;
    text += byte >= 0x20 && byte < 0x7F ? static_cast<char>(byte) : '.';
  }
  return out + "  |" + text + "|\n";
}

}  // namespace

Json store_stat_json(const pb::StoreStatResponse& response) {
  Json list = Json::array();
  for (const auto& s : response.nodes()) {
    if (!s.error().empty()) {
      list.push_back({{"node", s.node()}, {"error", s.error()}});
      continue;
    }
    Json held = Json::array();
    for (const auto& w : s.held()) {
      held.push_back({{"name", w.name()},     {"checkpoints", w.checkpoints()}, {"oldest", w.oldest()},
                      {"newest", w.newest()}, {"tagged", w.tagged()},           {"damaged", w.damaged()}});
    }
    list.push_back({{"node", s.node()},
                    {"problem", s.problem()},
                    {"in_memory", s.in_memory()},
                    {"encrypted", s.encrypted()},
                    {"workloads", s.workloads()},
                    {"checkpoints", s.checkpoints()},
                    {"pages", s.pages()},
                    {"bytes", s.bytes()},
                    {"log_bytes", s.log_bytes()},
                    {"garbage_pages", s.garbage_pages()},
                    {"segments", s.segments()},
                    {"index_bytes", s.index_bytes()},
                    {"budget_bytes", s.budget_bytes()},
                    {"disk_free_bytes", s.disk_free_bytes()},
                    {"put_new", s.put_new()},
                    {"put_known", s.put_known()},
                    {"commits", s.commits()},
                    {"collections", s.collections()},
                    {"compactions", s.compactions()},
                    {"shed", s.shed()},
                    {"damaged_frames", s.damaged_frames()},
                    {"damaged_records", s.damaged_records()},
                    {"rolled_back", s.rolled_back()},
                    {"held", held}});
  }
  return list;
}

std::string store_stat_text(const pb::StoreStatResponse& response) {
  Table nodes({"NODE", "CHECKPOINTS", "PAGES", "STORED", "LOGS", "GARBAGE", "INDEX", "BUDGET", "FREE", "PROBLEM"});
  Table held({"NODE", "WORKLOAD", "CHECKPOINTS", "OLDEST", "NEWEST", "TAGGED", "DAMAGED"});
  bool any = false;
  for (const auto& s : response.nodes()) {
    if (!s.error().empty()) {
      nodes.row({s.node(), "-", "-", "-", "-", "-", "-", "-", "-", printable(s.error())});
      continue;
    }
    nodes.row({s.node(), number(s.checkpoints()), number(s.pages()),
               format_bytes(s.bytes()) + (s.in_memory() ? " (memory)" : ""), format_bytes(s.log_bytes()),
               number(s.garbage_pages()), format_bytes(s.index_bytes()),
               s.budget_bytes() == 0 ? "-" : format_bytes(s.budget_bytes()),
               s.disk_free_bytes() == 0 ? "-" : format_bytes(s.disk_free_bytes()),
               s.problem().empty() ? "-" : printable(s.problem())});
    for (const auto& w : s.held()) {
      any = true;
      held.row({s.node(), w.name(), number(w.checkpoints()), number(w.oldest()), number(w.newest()),
                number(w.tagged()), number(w.damaged())});
    }
  }
  return nodes.text() + (any ? "\n" + held.text() : "");
}

Json store_gc_json(const pb::StoreGcResponse& response) {
  Json list = Json::array();
  for (const auto& r : response.nodes()) {
    if (!r.error().empty()) {
      list.push_back({{"node", r.node()}, {"error", r.error()}});
      continue;
    }
    list.push_back({{"node", r.node()},
                    {"pages_removed", r.pages_removed()},
                    {"bytes_freed", r.bytes_freed()},
                    {"segments_removed", r.segments_removed()},
                    {"segments_rewritten", r.segments_rewritten()}});
  }
  return list;
}

std::string store_gc_text(const pb::StoreGcResponse& response) {
  Table table({"NODE", "PAGES REMOVED", "FREED", "SEGMENTS REMOVED", "REWRITTEN", "PROBLEM"});
  for (const auto& r : response.nodes()) {
    const bool bad = !r.error().empty();
    table.row({r.node(), bad ? "-" : number(r.pages_removed()), bad ? "-" : format_bytes(r.bytes_freed()),
               bad ? "-" : number(r.segments_removed()), bad ? "-" : number(r.segments_rewritten()),
               bad ? printable(r.error()) : "-"});
  }
  return table.text();
}

Json store_verify_json(const std::vector<pb::StoreVerifyReport>& reports) {
  Json list = Json::array();
  for (const auto& r : reports) {
    if (!r.error().empty()) {
      list.push_back({{"node", r.node()}, {"error", r.error()}});
      continue;
    }
    Json damaged = Json::array(), manifests = Json::array();
    for (const auto& page : r.damaged()) {
      damaged.push_back({{"digest", page.digest()},
                         {"reason", page.reason()},
                         {"checkpoints", std::vector<std::string>(page.checkpoints().begin(), page.checkpoints().end())},
                         {"healed_from", page.healed_from()}});
    }
    for (const auto& m : r.manifests()) {
      manifests.push_back({{"checkpoint", m.checkpoint()}, {"reason", m.reason()}, {"healed_from", m.healed_from()}});
    }
    list.push_back({{"node", r.node()},
                    {"pages_checked", r.pages_checked()},
                    {"checkpoints_checked", r.checkpoints_checked()},
                    {"damaged_pages", r.damaged_pages()},
                    {"healed_pages", r.healed_pages()},
                    {"damaged", damaged},
                    {"manifests", manifests}});
  }
  return list;
}

std::string store_verify_text(const std::vector<pb::StoreVerifyReport>& reports) {
  std::string out;
  for (const auto& r : reports) {
    if (!r.error().empty()) {
      out += r.node() + ": " + printable(r.error()) + "\n";
      continue;
    }
    out += r.node() + ": " + number(r.pages_checked()) + " pages and " + number(r.checkpoints_checked()) +
           " checkpoints read, ";
    if (r.damaged_pages() == 0 && r.manifests_size() == 0) {
      out += "all in order\n";
      continue;
    }
    out += number(r.damaged_pages()) + " pages and " + number(static_cast<std::uint64_t>(r.manifests_size())) +
           " manifests damaged, " + number(r.healed_pages()) + " pages healed\n";
    for (const auto& page : r.damaged()) {
      std::string names;
      for (const auto& name : page.checkpoints()) names += (names.empty() ? "" : ", ") + name;
      out += printable("  page of " + names + ": " + page.reason() +
                       (page.healed_from().empty() ? "; still damaged" : "; healed from " + page.healed_from())) + "\n";
    }
    for (const auto& m : r.manifests()) {
      out += printable("  manifest of " + m.checkpoint() + ": " + m.reason() +
                       (m.healed_from().empty() ? "; still damaged" : "; healed from " + m.healed_from())) + "\n";
    }
  }
  return out;
}

Json marks_json(const pb::CheckpointMarks& marks) {
  return {{"workload", marks.workload()},
          {"seq", marks.seq()},
          {"tags", std::vector<std::string>(marks.tags().begin(), marks.tags().end())},
          {"pinned", marks.pinned()},
          {"nodes", std::vector<std::string>(marks.nodes().begin(), marks.nodes().end())}};
}

Json diff_part_json(const pb::DiffPart& part) {
  if (part.has_mapping()) {
    const auto& m = part.mapping();
    return {{"pid", m.pid()},       {"start", hex(m.start())}, {"end", hex(m.end())},
            {"name", m.name()},     {"kind", m.kind()},        {"change", m.change()},
            {"pages_changed", m.pages_changed()}, {"pages_added", m.pages_added()},
            {"pages_removed", m.pages_removed()}, {"detail", m.detail()}};
  }
  if (part.has_page()) {
    const auto& p = part.page();
    Json runs = Json::array();
    auto digits = [](const std::string& bytes) {
      std::string text;
      for (unsigned char byte : bytes) {
        char two[4];
        std::snprintf(two, sizeof two, "%02x", byte);
        text += two;
      }
      return text;
    };
    for (const auto& run : p.runs()) {
      runs.push_back({{"offset", run.offset()}, {"before", digits(run.before())}, {"after", digits(run.after())}});
    }
    Json out = {{"pid", p.pid()},       {"address", hex(p.address())},      {"mapping", p.mapping()},
                {"change", p.change()}, {"bytes_differ", p.bytes_differ()}};
    if (p.runs_size() > 0) out["runs"] = std::move(runs);
    return out;
  }
  const auto& s = part.summary();
  return {{"node", s.node()},
          {"pages_a", s.pages_a()},
          {"pages_b", s.pages_b()},
          {"pages_changed", s.pages_changed()},
          {"pages_added", s.pages_added()},
          {"pages_removed", s.pages_removed()},
          {"mappings_changed", s.mappings_changed()},
          {"pages_told", s.pages_told()},
          {"state", std::vector<std::string>(s.state().begin(), s.state().end())}};
}

std::string diff_part_text(const pb::DiffPart& part) {
  if (part.has_mapping()) {
    const auto& m = part.mapping();
    std::string out = m.change() == "added" ? "+ " : m.change() == "removed" ? "- " : "  ";
    if (m.end() != 0) out += "pid " + std::to_string(m.pid()) + "  " + hex(m.start()) + "-" + hex(m.end()) + "  ";
    out += m.name() + " (" + m.kind() + ")";
    if (m.pages_changed() + m.pages_added() + m.pages_removed() != 0) {
      out += ": " + number(m.pages_changed()) + " pages changed, " + number(m.pages_added()) + " added, " +
             number(m.pages_removed()) + " removed";
    }
    if (!m.detail().empty()) out += "  [" + m.detail() + "]";
    return printable(out) + "\n";
  }
  if (part.has_page()) {
    const auto& p = part.page();
    std::string out = printable("  page " + hex(p.address()) + " of pid " + std::to_string(p.pid()) + " " + p.mapping() +
                                ": " + p.change() + ", " + std::to_string(p.bytes_differ()) + " bytes differ") + "\n";
    for (const auto& run : p.runs()) {
      if (p.change() != "added") out += hex_line('-', p.address() + run.offset(), run.before());
      if (p.change() != "removed") out += hex_line('+', p.address() + run.offset(), run.after());
    }
    return out;
  }
  const auto& s = part.summary();
  std::string out;
  for (const auto& text : s.state()) out += printable(text) + "\n";
  return out + number(s.pages_changed()) + " pages changed, " + number(s.pages_added()) + " added, " +
         number(s.pages_removed()) + " removed, of " + number(s.pages_a()) + " and " + number(s.pages_b()) + "; " +
         number(s.mappings_changed()) + " mappings changed\n";
}

Json analysis_json(const pb::AnalyzeResponse& r) {
  Json checkpoints = Json::array(), groups = Json::object();
  for (const auto& c : r.checkpoints()) {
    Json one = {{"seq", c.seq()}, {"against", c.against()}, {"wall_ns", c.wall_ns()}, {"pages", c.pages()}};
    one.update(counts_json(c.counts()));
    checkpoints.push_back(std::move(one));
  }
  for (const auto& g : r.groups()) {
    Json one = {{"name", g.name()}};
    one.update(counts_json(g.counts()));
    groups["by_" + g.by()].push_back(std::move(one));
  }
  Json out = {{"name", r.name()}, {"node", r.node()}, {"checkpoints", checkpoints}, {"sum", counts_json(r.sum())}};
  out.update(groups);
  out["recurrence"] = buckets_json(r.recurrence(), true);
  out["age_checkpoints"] = buckets_json(r.age_checkpoints(), false);
  out["age_ms"] = buckets_json(r.age_ms(), false);
  out["measured_pages"] = r.measured_pages();
  return out;
}

std::string analysis_text(const pb::AnalyzeResponse& r) {
  const std::vector<std::string> columns = {"WRITTEN", "ZERO", "INTRA", "INTER", "NEW", "LEFT"};
  auto table_of = [&](const std::string& first) {
    std::vector<std::string> headers = {first};
    headers.insert(headers.end(), columns.begin(), columns.end());
    return Table(headers);
  };
  auto add = [](Table& table, const std::string& name, const pb::AnalyzeCounts& counts) {
    std::vector<std::string> cells = {printable(name)};
    for (auto& cell : counts_cells(counts)) cells.push_back(std::move(cell));
    table.row(std::move(cells));
  };
  Table checkpoints = table_of("CHECKPOINT");
  for (const auto& c : r.checkpoints()) add(checkpoints, r.name() + "@" + number(c.seq()), c.counts());
  add(checkpoints, "sum", r.sum());
  std::string out = checkpoints.text();
  for (const std::string by : {"kind", "mapping", "process"}) {
    std::string title = by;
    for (char& c : title) c = static_cast<char>(std::toupper(c));
    Table table = table_of(title);
    for (const auto& g : r.groups()) {
      if (g.by() == by) add(table, g.name(), g.counts());
    }
    out += "\n" + table.text();
  }
  const auto& s = r.sum();
  const std::uint64_t all = s.written() * 4096;
  Table saved({"SAVED BY", "BYTES", "OF WRITTEN"});
  saved.row({"zero pages", format_bytes(s.zero_bytes()), percent(s.zero_bytes(), all)});
  saved.row({"duplicates within", format_bytes(s.intra_bytes()), percent(s.intra_bytes(), all)});
  saved.row({"duplicates of earlier", format_bytes(s.inter_bytes()), percent(s.inter_bytes(), all)});
  saved.row({"zstd", format_bytes(s.zstd_bytes()), percent(s.zstd_bytes(), all)});
  saved.row({"delta, further", format_bytes(s.delta_bytes()), percent(s.delta_bytes(), all)});
  saved.row({"left before delta", format_bytes(s.left_bytes()), percent(s.left_bytes(), all)});
  out += "\n" + saved.text();
  Table recurrence({"CONTENT WRITTEN TIMES", "CONTENTS", "PAGES"});
  for (const auto& b : r.recurrence()) recurrence.row({range(b), number(b.contents()), number(b.pages())});
  Table ages({"RECURRING AFTER CHECKPOINTS", "PAGES"});
  for (const auto& b : r.age_checkpoints()) ages.row({range(b), number(b.pages())});
  out += "\n" + recurrence.text() + "\n" + ages.text();
  return out + "\nSizes measured on " + number(r.measured_pages()) + " of " + number(s.fresh()) + " new pages.\n";
}

}  // namespace baton::cli
