#include "agent/backend/registry.h"

#include <map>

#include "base/check.h"

namespace baton::backend {
namespace {
std::map<std::string, Factory>& entries() {
  static auto* map = new std::map<std::string, Factory>;
  return *map;
}
}  // namespace

Registrar::Registrar(std::string name, Factory factory) {
  bool inserted = entries().emplace(std::move(name), std::move(factory)).second;
  CHECK(inserted);
}

std::vector<std::string> backend_names() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : entries()) names.push_back(name);
  return names;
}

std::unique_ptr<Backend> make_backend(const std::string& name) {
  auto it = entries().find(name);
  return it == entries().end() ? nullptr : it->second();
}

}  // namespace baton::backend
