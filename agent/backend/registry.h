// The registry of backends. A backend enters itself at start-up with a static
// Registrar in an OBJECT library; a name used twice stops the program.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "agent/backend/backend.h"

namespace baton::backend {

using Factory = std::function<std::unique_ptr<Backend>()>;

class Registrar {
 public:
  Registrar(std::string name, Factory factory);
};

std::vector<std::string> backend_names();              // sorted
std::unique_ptr<Backend> make_backend(const std::string& name);  // null: no such backend

}  // namespace baton::backend
