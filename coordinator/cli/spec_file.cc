#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include "coordinator/cli/spec_file.h"

#include <algorithm>
#include <sstream>

#include "base/fd.h"
#include "coordinator/cli/spec_fields.h"
#include "coordinator/cli/units.h"
#include "coordinator/spec_rules.h"

namespace baton::cli {
namespace {

class Reader {
 public:
  explicit Reader(std::string file) : file_(std::move(file)) {}

  Error error(const toml::source_region& where, const std::string& text,
              const std::string& hint = {}) const {
    return make_error(Code::kInvalid, "read spec",
                      file_ + ":" + std::to_string(where.begin.line) + ": " + text, hint);
  }

  // One value as the text that the field's setter reads.
  Result<std::string> text_of(const std::string& key, const toml::node& node) const {
    if (auto text = node.as_string()) return text->get();
    if (auto number = node.as_integer()) return std::to_string(number->get());
    if (auto flag = node.as_boolean()) return std::string(flag->get() ? "true" : "false");
    if (auto number = node.as_floating_point()) {
      std::ostringstream out;
      out << number->get();
      return out.str();
    }
    return error(node.source(), key + " must be one value");
  }

  Result<void> set(pb::WorkloadSpec& spec, const SpecField& field, const toml::node& node) const {
    auto one = [&](const toml::node& item) -> Result<void> {
      BATON_ASSIGN(const auto text, text_of(field.key, item));
      auto done = field.set(spec, text);
      if (!done) {
        return error(item.source(), field.key + ": " + done.error().subject, done.error().hint);
      }
      return {};
    };
    if (field.key == "env" && node.is_table()) {
      for (const auto& [name, value] : *node.as_table()) {
        BATON_ASSIGN(const auto text, text_of("env", value));
        spec.add_env(std::string(name.str()) + "=" + text);
      }
      return {};
    }
    if (const auto* list = node.as_array()) {
      if (field.kind != FieldKind::kList) {
        return error(node.source(), field.key + " must be one value, not a list");
      }
      for (const auto& item : *list) BATON_TRY(one(item));
      return {};
    }
    if (field.kind == FieldKind::kSwitch && !node.is_boolean()) {
      return error(node.source(), field.key + " must be true or false");
    }
    return one(node);
  }

  Result<pb::WorkloadSpec> workload(const toml::table& table) const {
    const bool protects = table.contains("pid");
    pb::WorkloadSpec spec = new_spec(protects ? pb::ORIGIN_PROTECT : pb::ORIGIN_RUN);
    for (const auto& [name, node] : table) {
      const std::string key(name.str());
      if (key == "name") {
        if (!node.is_string()) return error(node.source(), "name must be text");
        spec.set_name(node.as_string()->get());
      } else if (key == "command") {
        const auto* list = node.as_array();
        if (!list || list->empty()) {
          return error(node.source(), "command must be a list of texts",
                       "Like command = [\"sleep\", \"60\"].");
        }
        for (const auto& item : *list) {
          if (!item.is_string()) return error(item.source(), "command must be a list of texts");
          spec.add_argv(item.as_string()->get());
        }
      } else if (key == "pid") {
        const auto* pid = node.as_integer();
        if (!pid || pid->get() <= 0) return error(node.source(), "pid must be a number above 0");
        spec.set_pid(pid->get());
      } else {
        const auto& fields = spec_fields();
        auto field = std::find_if(fields.begin(), fields.end(),
                                  [&](const SpecField& f) { return f.key == key; });
        if (field == fields.end()) {
          std::vector<std::string> known = {"name", "command", "pid"};
          for (const auto& f : fields) known.push_back(f.key);
          const std::string near = suggest(key, known);
          return error(name.source(), "unknown key '" + key + "'",
                       near.empty() ? "See docs/cli.md for all keys."
                                    : "Did you mean " + near + "?");
        }
        BATON_TRY(set(spec, *field, node));
      }
    }
    if (!protects) complete_environment(spec);
    auto checked = coordinator::check_spec(spec);
    if (!checked) return error(table.source(), checked.error().subject, checked.error().hint);
    return spec;
  }

 private:
  const std::string file_;
};

}  // namespace

Result<std::vector<pb::WorkloadSpec>> parse_spec_text(const std::string& text,
                                                      const std::string& name) {
  const Reader reader(name);
  const toml::parse_result parsed = toml::parse(text, name);
  if (!parsed) {
    return reader.error(parsed.error().source(), std::string(parsed.error().description()));
  }
  std::vector<pb::WorkloadSpec> specs;
  for (const auto& [key, node] : parsed.table()) {
    if (key.str() != "workload") {
      return reader.error(key.source(), "unknown key '" + std::string(key.str()) + "'",
                          "Each workload is one [[workload]].");
    }
    const auto* list = node.as_array();
    if (!list) {
      return reader.error(node.source(), "workload must be [[workload]], in double brackets");
    }
    for (const auto& item : *list) {
      if (!item.is_table()) return reader.error(item.source(), "workload must be [[workload]]");
      BATON_ASSIGN(auto spec, reader.workload(*item.as_table()));
      for (const auto& other : specs) {
        if (other.name() == spec.name()) {
          return reader.error(item.source(), "workload " + spec.name() + " is there twice");
        }
      }
      specs.push_back(std::move(spec));
    }
  }
  if (specs.empty()) {
    return make_error(Code::kInvalid, "read spec", name + ": no [[workload]] in it");
  }
  return specs;
}

Result<std::vector<pb::WorkloadSpec>> read_spec_file(const std::string& path) {
  auto text = read_file(path, kMaxSpecFileBytes);
  if (!text) return text.error();
  return parse_spec_text(*text, path);
}

}  // namespace baton::cli
