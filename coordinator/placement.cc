#include "coordinator/placement.h"

#include <algorithm>
#include <set>
#include <tuple>

namespace baton::coordinator {
namespace {

std::string join(const std::vector<std::string>& items, const char* separator) {
  std::string out;
  for (const auto& item : items) {
    if (!out.empty()) out += separator;
    out += item;
  }
  return out;
}

std::string mib(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::vector<std::string> missing(const std::vector<std::string>& wanted,
                                 const std::vector<std::string>& have) {
  const std::set<std::string> set(have.begin(), have.end());
  std::vector<std::string> out;
  for (const auto& item : wanted) {
    if (!set.contains(item)) out.push_back(item);
  }
  return out;
}

const Candidate* find(const std::vector<Candidate>& nodes, const std::string& name) {
  auto found = std::find_if(nodes.begin(), nodes.end(), [&](auto& n) { return n.name == name; });
  return found == nodes.end() ? nullptr : &*found;
}

// Why the node cannot take it; empty: it can.
std::string unfit(const Candidate& node, const std::vector<std::string>& features,
                  std::uint64_t memory_bytes, bool volumes) {
  if (!node.reachable) return "not reachable";
  if (node.drained) return "drained";
  if (volumes && !node.has_volumes) return "it cannot serve volumes (its kernel lacks FUSE)";
  auto lacking = missing(features, node.cpu_features);
  if (!lacking.empty()) {
    constexpr std::size_t kShown = 5;
    const std::size_t more = lacking.size() > kShown ? lacking.size() - kShown : 0;
    if (more > 0) lacking.resize(kShown);
    return "its processor lacks " + join(lacking, ", ") +
           (more > 0 ? " and " + std::to_string(more) + " more" : "");
  }
  if (node.memory_free_bytes < memory_bytes + kMemoryReserveBytes) {
    return "too little memory (" + mib(node.memory_free_bytes) + " free, " +
           mib(memory_bytes + kMemoryReserveBytes) + " needed)";
  }
  return {};
}

std::string load_text(const Candidate& node) {
  return std::to_string(node.workloads) + " workloads, " + std::to_string(node.standby_copies) +
         " standby copies, " + mib(node.memory_free_bytes) + " free";
}

bool better(const Candidate& a, const Candidate& b) {
  return std::make_tuple(a.workloads, a.standby_copies, ~a.memory_free_bytes, a.name) <
         std::make_tuple(b.workloads, b.standby_copies, ~b.memory_free_bytes, b.name);
}

Error unknown_node(const std::string& name, const std::vector<Candidate>& nodes) {
  std::vector<std::string> names;
  for (const auto& node : nodes) names.push_back(node.name);
  return make_error(Code::kNotFound, "place", "no node named " + name,
                    names.empty() ? "No node has registered yet."
                                  : "Known nodes: " + join(names, ", ") + ".");
}

Error refuse_named(const Candidate& node, const std::string& role, const std::string& reason) {
  return make_error(node.reachable ? Code::kUnsupported : Code::kUnreachable, "place",
                    role + " " + node.name + ": " + reason);
}

}  // namespace

Placement choose_standbys(const PlacementRequest& request, const std::string& primary,
                          const std::vector<std::string>& keep,
                          const std::vector<Candidate>& nodes) {
  Placement out;
  out.node = primary;
  const Candidate* home = find(nodes, primary);
  const std::vector<std::string> features = home ? home->cpu_features : std::vector<std::string>{};
  const std::uint64_t memory = request.standbys_hold_memory ? request.memory_need_bytes : 0;
  for (const auto& name : keep) {
    if (name == primary || out.standbys.size() >= request.standby_count) continue;
    out.standbys.push_back(name);
    out.why.push_back("standby " + name + ": kept, it holds a copy");
  }
  std::vector<Candidate> fit;
  for (const auto& node : nodes) {
    if (node.name == primary ||
        std::count(out.standbys.begin(), out.standbys.end(), node.name) > 0) {
      continue;
    }
    const std::string reason = unfit(node, features, memory, request.needs_volumes);
    if (reason.empty()) {
      fit.push_back(node);
    } else {
      out.why.push_back("standby " + node.name + ": not chosen, " + reason);
    }
  }
  std::sort(fit.begin(), fit.end(), better);
  for (const auto& node : fit) {
    if (out.standbys.size() < request.standby_count) {
      out.standbys.push_back(node.name);
      out.why.push_back("standby " + node.name + ": chosen, " + load_text(node));
    } else {
      out.why.push_back("standby " + node.name + ": not needed, " + load_text(node));
    }
  }
  return out;
}

Result<Placement> place(const PlacementRequest& request, const std::vector<Candidate>& nodes) {
  Placement out;
  if (std::max<std::size_t>(request.standby_count, request.standbys.size()) > kMaxStandbys) {
    return make_error(Code::kInvalid, "place",
                      "more than " + std::to_string(kMaxStandbys) + " standbys");
  }
  std::set<std::string> named;
  if (!request.node.empty()) named.insert(request.node);
  for (const auto& name : request.standbys) {
    if (!named.insert(name).second) {
      return make_error(Code::kInvalid, "place", "node " + name + " is named twice",
                        "A standby must be another node than the primary.");
    }
    if (!find(nodes, name)) return unknown_node(name, nodes);
  }

  if (!request.node.empty()) {
    const Candidate* node = find(nodes, request.node);
    if (!node) return unknown_node(request.node, nodes);
    const std::string reason = unfit(*node, request.require_features, request.memory_need_bytes, request.needs_volumes);
    if (!reason.empty()) return refuse_named(*node, "node", reason);
    out.node = request.node;
    out.why.push_back("node " + request.node + ": named by the request");
  } else {
    std::vector<Candidate> fit;
    std::vector<std::string> refused;
    for (const auto& node : nodes) {
      if (named.contains(node.name)) {
        refused.push_back("node " + node.name + ": not chosen, it is a named standby");
        continue;
      }
      std::string reason = unfit(node, request.require_features, request.memory_need_bytes, request.needs_volumes);
      if (reason.empty() && !request.standbys.empty()) {
        // Every named standby must be able to take over from it.
        for (const auto& standby : request.standbys) {
          const auto lacking = missing(node.cpu_features, find(nodes, standby)->cpu_features);
          if (!lacking.empty() && reason.empty()) {
            reason = "standby " + standby + " lacks its processor's " + lacking.front();
          }
        }
      }
      if (reason.empty()) {
        fit.push_back(node);
      } else {
        refused.push_back("node " + node.name + ": not chosen, " + reason);
      }
    }
    if (fit.empty()) {
      return make_error(Code::kUnsupported, "place",
                        "no node can take it: " +
                            (refused.empty() ? "no node has registered yet" : join(refused, "; ")),
                        "See baton node ls.");
    }
    std::sort(fit.begin(), fit.end(), better);
    out.node = fit.front().name;
    out.why.push_back("node " + out.node + ": chosen, " + load_text(fit.front()));
    for (std::size_t i = 1; i < fit.size(); ++i) {
      out.why.push_back("node " + fit[i].name + ": not needed, " + load_text(fit[i]));
    }
    out.why.insert(out.why.end(), refused.begin(), refused.end());
  }

  const auto& primary_features = find(nodes, out.node)->cpu_features;
  if (!request.standbys.empty()) {
    for (const auto& name : request.standbys) {
      const Candidate* node = find(nodes, name);
      const std::string reason =
          unfit(*node, primary_features,
                request.standbys_hold_memory ? request.memory_need_bytes : 0, request.needs_volumes);
      if (!reason.empty()) return refuse_named(*node, "standby", reason);
      out.standbys.push_back(name);
      out.why.push_back("standby " + name + ": named by the request");
    }
    return out;
  }
  if (request.standby_count == 0) {
    out.why.push_back("no standby: none asked for");
    return out;
  }
  Placement chosen = choose_standbys(request, out.node, {}, nodes);
  if (chosen.standbys.size() < request.standby_count && !request.standbys_optional) {
    return make_error(Code::kUnsupported, "place",
                      std::to_string(request.standby_count) + " standbys asked for, " +
                          std::to_string(chosen.standbys.size()) +
                          " possible: " + join(chosen.why, "; "),
                      "Ask for fewer standbys.");
  }
  out.standbys = chosen.standbys;
  out.why.insert(out.why.end(), chosen.why.begin(), chosen.why.end());
  if (out.standbys.empty()) out.why.push_back("no standby: no other fit node");
  return out;
}

}  // namespace baton::coordinator
